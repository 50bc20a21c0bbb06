"""Record shapes: alpaca, prompt-completion, messages, sharegpt -> `Example` or `BadRow`.

Only here (and in `turns.py`) do the words instruction, input, output, completion, from and value live.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from tithe.data.feedback import KNOWN, note_feedback, refusal
from tithe.data.ids import Occurrences, content_hash
from tithe.data.marks import LISTS, is_like_mark, note_record
from tithe.data.turns import RecordError, TurnsRead, kind, listing, read_tools, read_turns
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
)  # what a trainer may put into a dialogue, where its settings say so


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A record in one form, whatever shape it came in.

    Args:
        messages: all turns, a system message first if there is one.
        learnt: indices of the assistant turns that may be responses.
        tools: function schemas.
        columns: what the shape does not use.
        instruction: as in `Example`; of the last turn.
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


def looks_like(record: Record) -> list[Shape]:
    """All shapes whose required fields the record has, the most telling first."""
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


def detect(records: Iterable[Record]) -> Shape | None:
    """The shape that most of the records have; with none whole, the one that they begin."""
    counts: Counter[Shape] = Counter()
    begun: Counter[Shape] = Counter()
    for record in records:
        counts.update(looks_like(record))
        begun.update(["alpaca"] if "instruction" in record else ["prompt-completion"] if "prompt" in record else [])
    best = counts or begun
    if not best:
        return None
    order: list[Shape] = ["messages", "sharegpt", "alpaca", "prompt-completion"]
    return max(order, key=lambda shape: best[shape])


def read_dialogue(record: object, shape: Shape) -> Dialogue:
    """A record of the given shape.

    Raises:
        RecordError: with the reason, in the record's own words.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {kind(record)}, it must be an object")
    try:
        return _READERS[shape](record)
    except RecordError:
        shapes = looks_like(record)
        if not shapes and (why := refusal(record)):
            raise RecordError(why) from None
        if shapes and shape not in shapes:
            raise RecordError(f"looks like `{shapes[0]}`, the file is `{shape}`") from None
        raise


def examples(
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
        record: as it stands in the file.
        shape: of the file's records.
        turns: which responses are chosen.
        row: its number.
        where: file and line.
        seen: contents that came before.
        notes: what was noted when it was parsed.
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
    notes = tuple(dict.fromkeys((*notes, *dialogue.notes, *_unanswered(dialogue))))
    for turn in chosen:
        at = f"{where}, turn {turn}" if len(chosen) > 1 else where
        try:
            yield _example(dialogue, turn, row, at, seen, notes)
        except RecordError as error:
            yield BadRow(row, at, str(error))


def _unanswered(dialogue: Dialogue) -> tuple[str, ...]:
    """Note a dialogue whose last turn is no response."""
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
    last = turn == len(dialogue.messages) - 1
    instruction, part = (dialogue.instruction, dialogue.input) if last else (None, None)
    try:
        content = content_hash(prompt, response, dialogue.tools, part)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RecordError(f"a lone surrogate (U+{code:04X}) is in the text, it cannot be encoded as UTF-8") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise RecordError(f"the tool calls cannot be read: {error}") from None
    columns = dialogue.columns
    return Example(
        seen.name(content), row, turn, prompt, response, instruction, part, dialogue.tools, columns, where, notes
    )


def _missing(record: Record, names: tuple[str, ...]) -> RecordError:
    """No field of these names; says which there are, and which of them may be a slip."""
    there = [name for name in record if isinstance(name, str)]
    near = [slip for name in names for slip in difflib.get_close_matches(name, there, n=1, cutoff=0.7)]
    also = f" (or `{names[1]}`)" if len(names) > 1 else ""
    slip = f"; is `{near[0][:40]}` a slip?" if near else ""
    return RecordError(f"no `{names[0]}`{also}: there is {listing(there)}{slip}")


def _field(record: Record, names: tuple[str, ...]) -> tuple[str, Any]:
    """Name and value of the first field there is; null counts as there, to be reported as such."""
    name = next((name for name in names if record.get(name) is not None), None)
    name = name or next((name for name in names if name in record), None)
    if name is None:
        raise _missing(record, names)
    return name, record[name]


def _text(record: Record, names: tuple[str, ...]) -> str:
    value = record.get(names[0])
    if isinstance(value, str):  # the usual case of a million records
        return value
    name, value = _field(record, names)
    if not isinstance(value, str):
        raise RecordError(f"`{name}` is {kind(value)}, it must be a string")
    return value


def _system(record: Record) -> list[Message]:
    system = record.get("system")
    if system is None:
        return []
    if not isinstance(system, str):
        raise RecordError(f"`system` is {kind(system)}, it must be a string")
    return [Message("system", system)] if system.strip() else []


def _columns(record: Record, used: Iterable[str]) -> Record:
    return {name: value for name, value in record.items() if name not in used}


_ALPACA = SHARED | {"instruction", "history", *OUTPUTS, *INPUTS}


def _alpaca(record: Record) -> Dialogue:
    instruction, output = _text(record, ("instruction",)), _text(record, OUTPUTS)
    part = next((record[name] for name in INPUTS if record.get(name) is not None), None)
    if part is not None and not isinstance(part, str):
        raise RecordError(f"`input` is {kind(part)}, it must be a string")
    if (not instruction or instruction.isspace()) and (not part or part.isspace()):
        raise RecordError("instruction and input are empty")
    messages = _system(record) + _history(record)
    asked = f"{instruction}\n{part}" if part else instruction
    messages += [Message("user", asked), Message("assistant", output)]
    learnt = tuple(index for index, message in enumerate(messages) if message.role == "assistant")
    columns, notes = _columns(record, _ALPACA), _notes(record, "alpaca", messages, (instruction, part))
    return Dialogue(tuple(messages), learnt, read_tools(record), columns, instruction, part, notes)


def _history(record: Record) -> list[Message]:
    """LLaMA-Factory's `history`: earlier turns as [instruction, response] pairs."""
    history = record.get("history") or []
    if not isinstance(history, (list, tuple)):
        return []  # another column of that name; it stays out of the prompt, and that is noted
    messages: list[Message] = []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or [type(text) for text in pair] != [str, str]:
            what = [kind(text) for text in pair] if isinstance(pair, (list, tuple)) else [kind(pair)]
            raise RecordError(f"`history` must hold pairs of an instruction and a response: there is {', '.join(what)}")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


_PROMPTED = SHARED | {"prompt", *COMPLETIONS}


def _prompt_completion(record: Record) -> Dialogue:
    asked, said = _side(record, ("prompt",), "user"), _side(record, COMPLETIONS, "assistant")
    before = asked.messages
    if before[:1] and before[0].role != "system":
        before = _system(record) + before
    messages = before + said.messages
    chosen = tuple(len(before) + index for index in said.learnt)
    notes = (*said.notes, *_notes(record, "prompt-completion", messages))
    return Dialogue(tuple(messages), chosen, read_tools(record), _columns(record, _PROMPTED), notes=notes)


def _side(record: Record, names: tuple[str, ...], role: str) -> TurnsRead:
    name, value = _field(record, names)
    if isinstance(value, str):
        return TurnsRead([Message(role, value)], [0], [])
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"`{name}` is {kind(value)}, it must be a string or a list of messages")
    return read_turns(value, name)


def _turns_in(names: tuple[str, ...], shape: Shape) -> Callable[[Record], Dialogue]:
    used = SHARED | set(names)

    def read(record: Record) -> Dialogue:
        name, value = _field(record, names)
        read = read_turns(value, name, record)
        if read.messages and read.messages[-1].role == "user" and (why := refusal(record)):
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
}  # of each group the first field that is not null is read
_FIRST: Mapping[Shape, frozenset[str]] = {
    shape: frozenset(group[0] for group in groups) for shape, groups in _GROUPS.items()
}


_BESIDE = TEXTS | PICTURES


def _notes(
    record: Record,
    shape: Shape,
    messages: Sequence[Message],
    also: Iterable[str | None] = (),
    followed: Collection[str] = (),
) -> tuple[str, ...]:
    """Note fields of a record that are no part of the dialogue although a trainer may make them one.

    Args:
        record: as it stands in the file.
        shape: of the file's records.
        messages: the dialogue that was made of it.
        also: texts that were joined to make a message.
        followed: lists of marks that were read.
    """
    if not _is_odd(shape, tuple(record)):
        return ()
    notes: list[str] = []
    beside = _BESIDE & record.keys() - _FIRST[shape]
    if beside:
        read = {next((name for name in group if record.get(name) is not None), "") for group in _GROUPS[shape]}
        if shape == "alpaca" and isinstance(record.get("history"), (list, tuple)):
            read.add("history")
        said = {message.content for message in messages} | set(also)
        for name in sorted(beside - read):
            value = record[name]
            if not value or isinstance(value, (bool, int, float)) or (isinstance(value, str) and _is_said(value, said)):
                continue
            why = "only text is scored" if name in PICTURES else "it is no part of the dialogue"
            notes.append(f"`{name}` is not read: {why}")
    note_record(record, notes, followed)
    note_feedback(record, notes)
    return tuple(notes)


@lru_cache(maxsize=1024)
def _is_odd(shape: Shape, names: tuple[str, ...]) -> bool:
    """Return whether a record with these fields needs a closer look; most do not."""
    return any((name in _BESIDE and name not in _FIRST[shape]) or name in KNOWN or is_like_mark(name) for name in names)


def _is_said(value: str, said: Collection[str | None]) -> bool:
    return not value.strip() or value in said


_READERS: Mapping[Shape, Callable[[Record], Dialogue]] = {
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "messages": _turns_in(("messages",), "messages"),
    "sharegpt": _turns_in(CONVERSATIONS, "sharegpt"),
}
