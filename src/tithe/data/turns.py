"""Read dialogue turns, in any of the spellings found in public data sets, as `Message`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tithe.data.loss_marks import USUAL_FIELDS, judge_record, judge_turn
from tithe.foreign import FieldTwiceError, parse_json
from tithe.records import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
CONTENTS = ("content", "value", "text")
REASONINGS = ("reasoning_content", "reasoning", "thinking")
UNREAD = frozenset(
    [
        "image",
        "images",
        "video",
        "videos",
        "audio",
        "audios",
        "documents",
        "attachments",
        "refusal",
        "thought",
        "thoughts",
        "cot",
        "prefix",
    ]
)  # fields of a turn that a trainer may put into the dialogue and that are not read here


class RecordError(Exception):
    """A reason why a record cannot become an example; it becomes a `BadRow` and is not raised to users."""


def json_type(value: object) -> str:
    """Return a value's type by its JSON name."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "an object" if isinstance(value, Mapping) else names.get(type(value), f"a {type(value).__name__}")


def quoted_names(names: object) -> str:
    """Return up to eight field names in backticks, for a message; more would fill the terminal."""
    shown = [f"`{str(name)[:40]}`" for name in names] if isinstance(names, (list, tuple, Mapping)) else []
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "no field"


def parse_field(text: str, what: str) -> Any:
    """Parse JSON inside a string field; `what` names the field in the error."""
    try:
        return parse_json(text)
    except FieldTwiceError as error:
        raise RecordError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{what} is not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class TurnsRead:
    """The turns of a dialogue.

    Args:
        messages: all turns; consecutive function calls become one message with several calls.
        learnt: indices of the assistant turns to train on; the others are context.
        notes: notes on what is not read, or perhaps not as intended.
    """

    messages: list[Message]
    learnt: list[int]
    notes: list[str]


def read_turns(value: object, field: str, record: Mapping[str, Any] | None = None) -> TurnsRead:
    """Read all messages of a dialogue.

    Args:
        value: a list of turns, or its JSON.
        field: name of the field, for error messages.
        record: the whole record, which may mark for each turn whether to train on it.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":  # a CSV cell
        value = parse_field(value, f"`{field}`")
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"`{field}` is {json_type(value)}, it must be a list of messages")
    read = TurnsRead([], [], [])
    roles = [read_role(turn, f"{field}[{number}]") for number, turn in enumerate(value)]
    spoken = [number for number, role in enumerate(roles) if role in ("assistant", "function_call")]
    # Marks can be in the record or in each turn; a turn is learnt only if neither excludes it.
    left = judge_record(record, value, spoken, read.notes) if record is not None else set()
    called = False
    for number, (turn, role) in enumerate(zip(value, roles, strict=True)):
        where = f"{field}[{number}]"
        wanted = number in spoken and judge_turn(turn, read.notes) and number not in left
        if role == "function_call":
            calls = read_calls(_content(turn), where)
            if called:  # parallel calls in consecutive turns: one message in OpenAI's shape
                calls = read.messages.pop().tool_calls + calls
            elif wanted:
                read.learnt.append(len(read.messages))
            read.messages.append(Message("assistant", "", tool_calls=calls))
        else:
            if wanted:
                read.learnt.append(len(read.messages))
            read.messages.append(read_message(turn, role, where))
        if not turn.keys() <= USUAL_FIELDS:
            read.notes.extend(f"`{key}` of a turn is not read" for key in UNREAD & turn.keys() if turn[key])
        called = role == "function_call"
    return read


def read_role(turn: object, where: str) -> str:
    """Return the normalised role; `function_call` is an assistant turn with nothing but calls."""
    if not isinstance(turn, Mapping):
        raise RecordError(f"`{where}` is {json_type(turn)}, it must be an object with a role and a content")
    name = turn.get("role")
    if name is None:
        name = turn.get("from")
    if name is None:
        null = next((key for key in ("role", "from") if key in turn), None)
        if null is not None:
            raise RecordError(f"`{null}` of `{where}` is null, it must be a string")
        raise RecordError(f"`{where}` has no `role` (or `from`): there is {quoted_names(list(turn))}")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        known = "system, user, assistant, tool and their synonyms"
        raise RecordError(f"unknown role `{str(name)[:40]}` in `{where}`: known are {known}")
    return role


def read_message(turn: Mapping[str, Any], role: str, where: str) -> Message:
    """Read text, reasoning and tool calls of one turn; `<think>` inside the text stays there."""
    content = _content(turn)
    reasoning = next((turn[key] for key in REASONINGS if turn.get(key)), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise RecordError(f"the reasoning in `{where}` is {json_type(reasoning)}, it must be a string")
    calls: tuple[Mapping[str, Any], ...] = ()
    if turn.get("tool_calls"):
        calls = read_calls(turn["tool_calls"], where)
    elif turn.get("function_call"):
        calls = read_calls(turn["function_call"], where)
    name, call_id = _tool_result(turn) if role == "tool" else (None, None)
    if isinstance(content, str):
        return Message(role, content, reasoning, calls, name, call_id)
    if content is None:
        if calls:
            return Message(role, "", reasoning, calls)
        null = next((key for key in CONTENTS if key in turn), None)
        if null is not None:
            raise RecordError(f"`{null}` of `{where}` is null, it must be a string or a list of parts")
        raise RecordError(f"`{where}` has no content: there is {quoted_names(list(turn))}")
    if not isinstance(content, (list, tuple)):
        raise RecordError(f"the content of `{where}` is {json_type(content)}, it must be a string or a list of parts")
    return _from_parts(content, Message(role, "", reasoning, calls, name, call_id), where)


def _tool_result(turn: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the function's name and the call's id of a tool result, None where missing."""
    name, call_id = turn.get("name"), turn.get("tool_call_id")
    return name if isinstance(name, str) else None, call_id if isinstance(call_id, str) else None


def _from_parts(parts: list[Any] | tuple[Any, ...], base: Message, where: str) -> Message:
    texts: list[str] = []
    thoughts = [] if base.reasoning is None else [base.reasoning]
    calls = base.tool_calls
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RecordError(f"a part of `{where}` is {json_type(part)}, it must be an object")
        name = str(part["type"]) if part.get("type") is not None else "text"
        value = next((part[key] for key in ("text", "value", name) if part.get(key) is not None), None)
        if name == "tool_call":
            calls += read_calls(value, where)
        elif name not in ("text", "reasoning", "thinking"):
            raise RecordError(f"`{where}` has a part of type `{name[:40]}`, only text can be scored")
        elif not isinstance(value, str):
            raise RecordError(f"a `{name}` part of `{where}` is {json_type(value)}, it must be a string")
        else:
            (texts if name == "text" else thoughts).append(value)
    return replace(base, content="".join(texts), reasoning="".join(thoughts) if thoughts else None, tool_calls=calls)


def read_calls(value: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return tool calls in OpenAI's shape with the arguments as an object, from any spelling."""
    if isinstance(value, str):
        value = parse_field(value, f"the tool call in `{where}`")
    calls = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_call(call, where) for call in calls)


def _call(call: object, where: str) -> Mapping[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(call, Mapping) and inner is None:
        inner = call  # `function: null` beside the function's own fields: Arrow fills in such nulls
    if not isinstance(call, Mapping):
        raise RecordError(f"a tool call in `{where}` is {json_type(call)}, it must be an object")
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        named = isinstance(inner, Mapping) and "name" in inner
        why = f": `name` is {json_type(inner['name'])}" if named else ""  # type: ignore[index]
        raise RecordError(f"a tool call in `{where}` has no function name{why}")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        what = f"the arguments of `{inner['name'][:40]}` in `{where}`"
        arguments = parse_field(arguments, what) if arguments.strip() else {}
    elif _is_pairs(arguments):
        arguments = {pair["key"]: pair.get("value") for pair in arguments}
    out: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}}
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    return out


def _is_pairs(value: object) -> bool:
    """Tell whether this is a map as some Parquet writers store it: a list of key-value objects with unique keys."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if not all(isinstance(one, Mapping) and one.keys() <= {"key", "value"} and "key" in one for one in value):
        return False
    keys = [one["key"] for one in value]
    return all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)


def read_tools(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the record's function schemas, each as `{"type": "function", "function": {...}}`."""
    value = record.get("tools")
    if value is None:
        value = record.get("functions")
    if isinstance(value, str):
        value = parse_field(value, "`tools`") if value.strip() else None
    if not value:
        return ()
    tools = value if isinstance(value, (list, tuple)) else [value]
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise RecordError(f"`tools` holds {json_type(tool)}, it must hold function schemas")
    return tuple({"type": "function", "function": tool} if "name" in tool else tool for tool in tools)


def _content(turn: Mapping[str, Any]) -> Any:
    return next((turn[key] for key in CONTENTS if turn.get(key) is not None), None)
