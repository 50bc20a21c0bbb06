"""Record shapes: alpaca, prompt-completion, messages, sharegpt -> `Example` or `BadRow`.

Only here (and in `turns.py`) do the words instruction, input, output, completion, from and value live.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..records import BadRow, Example, Message
from .ids import Occurrences, content_hash
from .turns import RecordError, kind, listing, read_tools, read_turns

Shape: TypeAlias = Literal["alpaca", "prompt-completion", "messages", "sharegpt"]
Turns: TypeAlias = Literal["last", "all"]
Record: TypeAlias = Mapping[str, Any]

OUTPUTS = ("output", "response")
INPUTS = ("input", "context")
COMPLETIONS = ("completion", "response")
CONVERSATIONS = ("conversations", "conversation")
SHARED = frozenset({"tools", "functions", "system"})


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
    """

    messages: tuple[Message, ...]
    learnt: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...]
    columns: Record
    instruction: str | None = None
    input: str | None = None


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
        if shapes and shape not in shapes:
            raise RecordError(f"looks like `{shapes[0]}`, the file is `{shape}`") from None
        raise


def examples(
    record: object, shape: Shape, turns: Turns, row: int, where: str, seen: Occurrences
) -> Iterator[Example | BadRow]:
    """What becomes of one record: an example per chosen response, a `BadRow` for each that cannot be one."""
    try:
        dialogue = read_dialogue(record, shape)
        chosen = dialogue.learnt if turns == "all" else dialogue.learnt[-1:]
        if not chosen:
            spoken = any(message.role == "assistant" for message in dialogue.messages)
            raise RecordError("every assistant turn has weight 0" if spoken else "no assistant turn")
    except RecordError as error:
        yield BadRow(row, where, str(error))
        return
    for turn in chosen:
        at = f"{where}, turn {turn}" if len(chosen) > 1 else where
        try:
            yield _example(dialogue, turn, row, at, seen)
        except RecordError as error:
            yield BadRow(row, at, str(error))


def _example(dialogue: Dialogue, turn: int, row: int, where: str, seen: Occurrences) -> Example:
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
    return Example(seen.name(content), row, turn, prompt, response, instruction, part, dialogue.tools, columns, where)


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
    columns = _columns(record, _ALPACA)
    return Dialogue(tuple(messages), learnt, read_tools(record), columns, instruction, part)


def _history(record: Record) -> list[Message]:
    """LLaMA-Factory's `history`: earlier turns as [instruction, response] pairs."""
    history = record.get("history") or []
    if not isinstance(history, list):
        return []  # another column of that name; it stays out of the prompt
    messages: list[Message] = []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or [type(text) for text in pair] != [str, str]:
            raise RecordError("`history` must hold pairs of an instruction and a response")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


_PROMPTED = SHARED | {"prompt", *COMPLETIONS}


def _prompt_completion(record: Record) -> Dialogue:
    before = _side(record, ("prompt",), "user")[0]
    after, learnt = _side(record, COMPLETIONS, "assistant")
    if before[:1] and before[0].role != "system":
        before = _system(record) + before
    chosen = tuple(len(before) + index for index in learnt)
    return Dialogue(tuple(before + after), chosen, read_tools(record), _columns(record, _PROMPTED))


def _side(record: Record, names: tuple[str, ...], role: str) -> tuple[list[Message], list[int]]:
    name, value = _field(record, names)
    if isinstance(value, str):
        return [Message(role, value)], [0]
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"`{name}` is {kind(value)}, it must be a string or a list of messages")
    return read_turns(value, name)


def _turns_in(names: tuple[str, ...]) -> Callable[[Record], Dialogue]:
    used = SHARED | set(names)

    def read(record: Record) -> Dialogue:
        name, value = _field(record, names)
        messages, learnt = read_turns(value, name)
        system = [] if messages[:1] and messages[0].role == "system" else _system(record)
        chosen = tuple(len(system) + index for index in learnt)
        return Dialogue((*system, *messages), chosen, read_tools(record), _columns(record, used))

    return read


_READERS: Mapping[Shape, Callable[[Record], Dialogue]] = {
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "messages": _turns_in(("messages",)),
    "sharegpt": _turns_in(CONVERSATIONS),
}
