"""One dialogue turn as people write it, in any of the spellings seen in the wild, -> `Message`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..records import Message

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
WEIGHTS = ("weight", "loss_weight", "train")


class RecordError(Exception):
    """Why this record cannot become an example; never leaves this folder."""


def kind(value: object) -> str:
    """A JSON value's type in JSON's own words."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "an object" if isinstance(value, Mapping) else names.get(type(value), f"a {type(value).__name__}")


def listing(names: object) -> str:
    """Field names for a message: at most eight, so that a strange record does not fill the screen."""
    shown = [f"`{str(name)[:40]}`" for name in names] if isinstance(names, (list, tuple, Mapping)) else []
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "no field"


def loads(text: str, what: str) -> Any:
    """JSON inside a string field."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{what} is not JSON: {error}") from None


def read_turns(value: object, field: str) -> tuple[list[Message], list[int]]:
    """All messages of a dialogue, and the indices of the assistant turns that are meant to be learnt.

    Consecutive function calls become one message with several calls. A turn with weight 0 stays as context.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":  # a CSV cell
        value = loads(value, f"`{field}`")
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"`{field}` is {kind(value)}, it must be a list of messages")
    messages: list[Message] = []
    learnt: list[int] = []
    called = False
    for number, turn in enumerate(value):
        where = f"{field}[{number}]"
        role = read_role(turn, where)
        if role == "function_call":
            calls = read_calls(_content(turn), where)
            if called:
                last = messages.pop()
                calls = last.tool_calls + calls
            elif _weight(turn):
                learnt.append(len(messages))
            messages.append(Message("assistant", "", tool_calls=calls))
        else:
            if role == "assistant" and _weight(turn):
                learnt.append(len(messages))
            messages.append(read_message(turn, role, where))
        called = role == "function_call"
    return messages, learnt


def read_role(turn: object, where: str) -> str:
    """The role in our words; `function_call` stands for an assistant turn that is nothing but calls."""
    if not isinstance(turn, Mapping):
        raise RecordError(f"`{where}` is {kind(turn)}, it must be an object with a role and a content")
    name = turn.get("role")
    if name is None:
        name = turn.get("from")
    if name is None:
        raise RecordError(f"`{where}` has no `role` (or `from`): there is {listing(list(turn))}")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        known = "system, user, assistant, tool and their synonyms"
        raise RecordError(f"unknown role `{str(name)[:40]}` in `{where}`: known are {known}")
    return role


def read_message(turn: Mapping[str, Any], role: str, where: str) -> Message:
    """Text, reasoning and tool calls of one turn; `<think>` inside the text stays where it is."""
    content = _content(turn)
    reasoning = next((turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise RecordError(f"the reasoning in `{where}` is {kind(reasoning)}, it must be a string")
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
        raise RecordError(f"`{where}` has no content: there is {listing(list(turn))}")
    if not isinstance(content, (list, tuple)):
        raise RecordError(f"the content of `{where}` is {kind(content)}, it must be a string or a list of parts")
    return _from_parts(content, Message(role, "", reasoning, calls, name, call_id), where)


def _tool_result(turn: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Whose result it is: the function's name and the id of the call, where the record says so."""
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
            raise RecordError(f"a part of `{where}` is {kind(part)}, it must be an object")
        name = str(part.get("type", "text"))
        value = next((part[key] for key in ("text", "value", name) if part.get(key) is not None), None)
        if name == "tool_call":
            calls += read_calls(value, where)
        elif name not in ("text", "reasoning", "thinking"):
            raise RecordError(f"`{where}` has a part of type `{name[:40]}`, only text can be scored")
        elif not isinstance(value, str):
            raise RecordError(f"a `{name}` part of `{where}` is {kind(value)}, it must be a string")
        else:
            (texts if name == "text" else thoughts).append(value)
    return replace(base, content="".join(texts), reasoning="".join(thoughts) if thoughts else None, tool_calls=calls)


def read_calls(value: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls in OpenAI's shape with the arguments as an object, from any spelling of them."""
    if isinstance(value, str):
        value = loads(value, f"the tool call in `{where}`")
    calls = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_call(call, where) for call in calls)


def _call(call: object, where: str) -> Mapping[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RecordError(f"a tool call in `{where}` has no function name")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        what = f"the arguments of `{inner['name'][:40]}` in `{where}`"
        arguments = loads(arguments, what) if arguments.strip() else {}
    out: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}}
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    return out


def read_tools(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The record's function schemas, each as `{"type": "function", "function": {...}}`."""
    value = record.get("tools")
    if value is None:
        value = record.get("functions")
    if isinstance(value, str):
        value = loads(value, "`tools`") if value.strip() else None
    if not value:
        return ()
    tools = value if isinstance(value, (list, tuple)) else [value]
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise RecordError(f"`tools` holds {kind(tool)}, it must hold function schemas")
    return tuple({"type": "function", "function": tool} if "name" in tool else tool for tool in tools)


def _content(turn: Mapping[str, Any]) -> Any:
    return next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)


def _weight(turn: Mapping[str, Any]) -> bool:
    """False only where the record itself says that this turn is not to be learnt."""
    return not any(turn.get(key) is not None and turn[key] in (0, False) for key in WEIGHTS)
