"""Read records of the shapes alpaca, prompt-completion, messages and sharegpt as `Example` or `BadRow`.

Only this file and `turns.py` use the formats' own words instruction, input, output, completion, from and value.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from tithe.data.feedback import FEEDBACK_FIELDS, explain_preference_data, note_feedback
from tithe.data.ids import Occurrences, content_hash
from tithe.data.loss_marks import LISTS, is_like_mark, note_record
from tithe.data.turns import RecordError, TurnsRead, json_type, quoted_names, read_tools, read_turns
from tithe.records import BadRow, Example, Message

Shape: TypeAlias = Literal["alpaca", "prompt-completion", "messages", "sharegpt"]
Turns: TypeAlias = Literal["last", "all"]
Record: TypeAlias = Mapping[str, Any]

OUTPUTS = ("output", "response")
INPUTS = ("input", "context")
COMPLETIONS = ("completion", "response")
CONVERSATIONS = ("conversations", "conversation")
SHARED = frozenset({"tools", "functions", "system"})
PICTURES = frozenset(["image", "images", "video", "videos", "audio", "audios"])
TEXTS = frozenset(
    (*OUTPUTS, *INPUTS, *COMPLETIONS, *CONVERSATIONS, *SHARED, "instruction", "prompt", "messages", "history")
) | frozenset(
    [
        "system_prompt",
        "system_message",
        "developer",
        "documents",
        "query",
        "question",
        "answer",
        "suffix",
        "thinking",
        "reasoning",
        "reasoning_content",
        "thought",
        "cot",
        "chain_of_thought",
        "rationale",
    ]
)  # fields that a trainer may put into the dialogue if its settings say so


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A record in one form, independent of its shape.

    Args:
        messages: all turns, a system message first if there is one.
        learnt: indices of the assistant turns that may be responses.
        tools: function schemas.
        columns: the fields that the shape does not use.
        instruction: as in `Example`; for the last turn.
        input: as in `Example`.
        notes: as in `Example`.
    """

    messages: tuple[Message, ...]
    learnt: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...]
    columns: Record
    instruction: str | None = None
    input: str | None = None
    notes: tuple[str, ...] = ()


def _has(record: Record, names: Iterable[str]) -> bool:
    return any(name in record for name in names)


def matching_shapes(record: Record) -> list[Shape]:
    """Return all shapes whose required fields the record has, the most specific first."""
    found: list[Shape] = []
    if "messages" in record:
        found.append("messages")
    if _has(record, CONVERSATIONS):
        found.append("sharegpt")
    if "instruction" in record and _has(record, OUTPUTS):
        found.append("alpaca")
    if "prompt" in record and _has(record, COMPLETIONS):
        found.append("prompt-completion")
    return found


def detect_shape(records: Iterable[Record]) -> Shape | None:
    """Return the shape of most records; if none is complete, the shape whose first field most of them have."""
    counts: Counter[Shape] = Counter()
    begun: Counter[Shape] = Counter()
    for record in records:
        counts.update(matching_shapes(record))
        begun.update(["alpaca"] if "instruction" in record else ["prompt-completion"] if "prompt" in record else [])
    best = counts or begun
    if not best:
        return None
    order: list[Shape] = ["messages", "sharegpt", "alpaca", "prompt-completion"]
    return max(order, key=lambda shape: best[shape])


def read_dialogue(record: object, shape: Shape) -> Dialogue:
    """Read a record of the given shape.

    Raises:
        RecordError: naming the record's own fields.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {json_type(record)}, it must be an object")
    try:
        return _READERS[shape](record)
    except RecordError:
        # The reader's error is about the file's shape; explain instead if the record is of quite another kind.
        shapes = matching_shapes(record)
        if not shapes and (why := explain_preference_data(record)):
            raise RecordError(why) from None
        if shapes and shape not in shapes:
            raise RecordError(f"looks like `{shapes[0]}`, the file is `{shape}`") from None
        raise


def read_examples(
    record: object,
    shape: Shape,
    turns: Turns,
    row: int,
    where: str,
    seen: Occurrences,
    notes: tuple[str, ...] = (),
) -> Iterator[Example | BadRow]:
    """Yield an example for each chosen response of a record, a `BadRow` for each that cannot be one.

    Args:
        record: as read from the file.
        shape: of the file's records.
        turns: which responses to choose.
        row: number of the record.
        where: file and line.
        seen: counts the contents of earlier examples.
        notes: notes from parsing the record.
    """
    try:
        dialogue = read_dialogue(record, shape)
        chosen = dialogue.learnt if turns == "all" else dialogue.learnt[-1:]
        if not chosen:
            spoken = any(message.role == "assistant" for message in dialogue.messages)
            raise RecordError(
                "every assistant turn has weight 0 or another mark that keeps it from being learnt"
                if spoken
                else "no assistant turn"
            )
    except RecordError as error:
        yield BadRow(row, where, str(error))
        return
    # Without repetition, in order: many turns of a record have the same notes.
    notes = tuple(dict.fromkeys((*notes, *dialogue.notes, *_unanswered(dialogue))))
    for turn in chosen:
        at = f"{where}, turn {turn}" if len(chosen) > 1 else where
        try:
            yield _example(dialogue, turn, row, at, seen, notes)
        except RecordError as error:
            yield BadRow(row, at, str(error))


def _unanswered(dialogue: Dialogue) -> tuple[str, ...]:
    """Return a note if the dialogue ends with a turn that is not a response."""
    role = dialogue.messages[-1].role
    if role == "assistant":
        return ()
    return (f"the dialogue ends with a turn of the {role} after the last response: an earlier turn is scored",)


def _example(
    dialogue: Dialogue, turn: int, row: int, where: str, seen: Occurrences, notes: tuple[str, ...] = ()
) -> Example:
    prompt, response = dialogue.messages[:turn], dialogue.messages[turn]
    if not response.tool_calls and (not response.content or response.content.isspace()):
        raise RecordError("the response is only reasoning" if response.reasoning else "the response is empty")
    if not any(m.tool_calls or (m.content and not m.content.isspace()) for m in prompt):
        raise RecordError("nothing but whitespace stands before the response" if prompt else "no prompt")
    # Only the last turn answers the record's own instruction and input; earlier ones answer the history.
    last = turn == len(dialogue.messages) - 1
    instruction, part = (dialogue.instruction, dialogue.input) if last else (None, None)
    try:
        content = content_hash(prompt, response, dialogue.tools, part)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RecordError(f"a lone surrogate (U+{code:04X}) is in the text, it cannot be encoded as UTF-8") from None
    except (RecursionError, ValueError, TypeError) as error:  # only tool calls and schemas hold arbitrary values
        raise RecordError(f"the tool calls cannot be read: {error}") from None
    columns = dialogue.columns
    return Example(
        seen.name(content), row, turn, prompt, response, instruction, part, dialogue.tools, columns, where, notes
    )


def _missing(record: Record, names: tuple[str, ...]) -> RecordError:
    """Return an error for a missing field that lists the fields present and a likely misspelling."""
    there = [name for name in record if isinstance(name, str)]
    near = [slip for name in names for slip in difflib.get_close_matches(name, there, n=1, cutoff=0.7)]
    also = f" (or `{names[1]}`)" if len(names) > 1 else ""
    slip = f"; is `{near[0][:40]}` a slip?" if near else ""
    return RecordError(f"no `{names[0]}`{also}: there is {quoted_names(there)}{slip}")


def _field(record: Record, names: tuple[str, ...]) -> tuple[str, Any]:
    """Return name and value of the first field that is not null, else of the first that is present."""
    name = next((name for name in names if record.get(name) is not None), None)
    name = name or next((name for name in names if name in record), None)
    if name is None:
        raise _missing(record, names)
    return name, record[name]


def _text(record: Record, names: tuple[str, ...]) -> str:
    value = record.get(names[0])
    if isinstance(value, str):  # shortcut for the usual case: this runs once per record
        return value
    name, value = _field(record, names)
    if not isinstance(value, str):
        raise RecordError(f"`{name}` is {json_type(value)}, it must be a string")
    return value


def _system(record: Record) -> list[Message]:
    system = record.get("system")
    if system is None:
        return []
    if not isinstance(system, str):
        raise RecordError(f"`system` is {json_type(system)}, it must be a string")
    return [Message("system", system)] if system.strip() else []


def _columns(record: Record, used: Iterable[str]) -> Record:
    return {name: value for name, value in record.items() if name not in used}


_ALPACA = SHARED | {"instruction", "history", *OUTPUTS, *INPUTS}


def _alpaca(record: Record) -> Dialogue:
    instruction, output = _text(record, ("instruction",)), _text(record, OUTPUTS)
    part = next((record[name] for name in INPUTS if record.get(name) is not None), None)
    if part is not None and not isinstance(part, str):
        raise RecordError(f"`input` is {json_type(part)}, it must be a string")
    if (not instruction or instruction.isspace()) and (not part or part.isspace()):
        raise RecordError("instruction and input are empty")
    messages = _system(record) + _history(record)
    asked = f"{instruction}\n{part}" if part else instruction
    messages += [Message("user", asked), Message("assistant", output)]
    learnt = tuple(index for index, message in enumerate(messages) if message.role == "assistant")
    columns, notes = _columns(record, _ALPACA), _notes(record, "alpaca", messages, (instruction, part))
    return Dialogue(tuple(messages), learnt, read_tools(record), columns, instruction, part, notes)


def _history(record: Record) -> list[Message]:
    """Read LLaMA-Factory's `history`: earlier turns as [instruction, response] pairs."""
    history = record.get("history") or []
    if not isinstance(history, (list, tuple)):
        return []  # an unrelated column of that name; `_notes` reports that it is not read
    messages: list[Message] = []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or [type(text) for text in pair] != [str, str]:
            what = [json_type(text) for text in pair] if isinstance(pair, (list, tuple)) else [json_type(pair)]
            raise RecordError(f"`history` must hold pairs of an instruction and a response: there is {', '.join(what)}")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


_PROMPTED = SHARED | {"prompt", *COMPLETIONS}


def _prompt_completion(record: Record) -> Dialogue:
    asked, said = _read_side(record, ("prompt",), "user"), _read_side(record, COMPLETIONS, "assistant")
    before = asked.messages
    # A system message in the prompt's own list wins over the column `system`.
    if before[:1] and before[0].role != "system":
        before = _system(record) + before
    messages = before + said.messages
    chosen = tuple(len(before) + index for index in said.learnt)
    notes = (*said.notes, *_notes(record, "prompt-completion", messages))
    return Dialogue(tuple(messages), chosen, read_tools(record), _columns(record, _PROMPTED), notes=notes)


def _read_side(record: Record, names: tuple[str, ...], role: str) -> TurnsRead:
    name, value = _field(record, names)
    if isinstance(value, str):
        return TurnsRead([Message(role, value)], [0], [])
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"`{name}` is {json_type(value)}, it must be a string or a list of messages")
    return read_turns(value, name)


def _turns_in(names: tuple[str, ...], shape: Shape) -> Callable[[Record], Dialogue]:
    used = SHARED | set(names)

    def read(record: Record) -> Dialogue:
        name, value = _field(record, names)
        read = read_turns(value, name, record)
        # Preference data in chat form: the messages end with the prompt, the responses are in other columns.
        if read.messages and read.messages[-1].role == "user" and (why := explain_preference_data(record)):
            raise RecordError(why)
        system = [] if read.messages[:1] and read.messages[0].role == "system" else _system(record)
        messages = (*system, *read.messages)
        chosen = tuple(len(system) + index for index in read.learnt)
        notes = (*read.notes, *_notes(record, shape, messages, followed=LISTS))
        return Dialogue(messages, chosen, read_tools(record), _columns(record, used), notes=notes)

    return read


_GROUPS: Mapping[Shape, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction",), OUTPUTS, INPUTS, ("tools", "functions")),
    "prompt-completion": (("prompt",), COMPLETIONS, ("tools", "functions")),
    "messages": (("messages",), ("tools", "functions")),
    "sharegpt": (CONVERSATIONS, ("tools", "functions")),
}  # from each group, the first field that is not null is read
_FIRST: Mapping[Shape, frozenset[str]] = {
    shape: frozenset(group[0] for group in groups) for shape, groups in _GROUPS.items()
}


_DIALOGUE_FIELDS = TEXTS | PICTURES


def _notes(
    record: Record,
    shape: Shape,
    messages: Sequence[Message],
    also: Iterable[str | None] = (),
    followed: Collection[str] = (),
) -> tuple[str, ...]:
    """Return notes on fields that are not read although a trainer may make them part of the dialogue.

    Args:
        record: as read from the file.
        shape: of the file's records.
        messages: the dialogue made from it.
        also: texts that were joined into a message.
        followed: names of mark lists that were read.
    """
    # This runs for every record, so most leave here.
    if not _needs_notes(shape, tuple(record)):
        return ()
    notes: list[str] = []
    beside = _DIALOGUE_FIELDS & record.keys() - _FIRST[shape]
    if beside:
        read = {next((name for name in group if record.get(name) is not None), "") for group in _GROUPS[shape]}
        if shape == "alpaca" and isinstance(record.get("history"), (list, tuple)):
            read.add("history")
        said = {message.content for message in messages} | set(also)
        for name in sorted(beside - read):
            value = record[name]
            if (
                not value
                or isinstance(value, (bool, int, float))
                or (isinstance(value, str) and _is_in_dialogue(value, said))
            ):
                continue
            why = "only text is scored" if name in PICTURES else "it is no part of the dialogue"
            notes.append(f"`{name}` is not read: {why}")
    note_record(record, notes, followed)
    note_feedback(record, notes)
    return tuple(notes)


@lru_cache(maxsize=1024)
def _needs_notes(shape: Shape, names: tuple[str, ...]) -> bool:
    """Tell whether a record with these fields may need notes; most do not, and the cache makes the check cheap."""
    return any(
        (name in _DIALOGUE_FIELDS and name not in _FIRST[shape]) or name in FEEDBACK_FIELDS or is_like_mark(name)
        for name in names
    )


def _is_in_dialogue(value: str, said: Collection[str | None]) -> bool:
    return not value.strip() or value in said


_READERS: Mapping[Shape, Callable[[Record], Dialogue]] = {
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "messages": _turns_in(("messages",), "messages"),
    "sharegpt": _turns_in(CONVERSATIONS, "sharegpt"),
}
