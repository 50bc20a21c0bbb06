"""An example as rendered by a template, and the parts of it that the template left out.

Templates drop parts silently: a system message, tool schemas, the reasoning beside a response. To find them, render
the dialogue's outline: the same dialogue with a unique mark in place of each text. Searching the rendering for the
texts themselves would miss a dropped "yes" that also occurs elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from tithe.records import Example, Message


@dataclass(frozen=True, slots=True)
class Remarks:
    """Facts about the rendering and tokenising of an example that are counted and reported.

    Args:
        parts: the uncommon parts that the example has: system message, reasoning, tool calls and so on.
        left_out: those of them that the template left out, wholly or in part.
        apart: a token spans the beginning of the response, so prompt and response were tokenised separately.
        own_end: the response's own text ends with the marker that ends a response.
    """

    parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    apart: bool = False
    own_end: bool = False


NO_REMARKS = Remarks()


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rendered text of an example: `prompt + response + tail`.

    Args:
        prompt: everything before the response.
        response: the scored text, as the template writes it.
        tail: what the template writes after the response: the end-of-turn marker, a newline.
        anchor: the end of the prompt that is the same for every example.
        remarks: includes the parts of the example that the template left out.
    """

    prompt: str
    response: str
    tail: str
    anchor: str
    remarks: Remarks = NO_REMARKS


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """The constant texts of a template around turns, used to put one dialogue after another in a sequence.

    Args:
        opening: the text before the first user message, including a default system message.
        between: the text between a response and the next user message; None if a second turn cannot be rendered.
        tail: the text after the last response.
        system_opening: the text before a system message; None if the template takes none.
    """

    opening: str
    between: str | None
    tail: str = ""
    system_opening: str | None = None


COMMON_PARTS = frozenset({"user message", "earlier response", "response text"})  # reported only if left out
CALL_ID = "abcdefgh1"  # nine letters and digits, as Mistral's templates demand
THINK_END = "</think>"
_THINK = re.compile(r"(</?think>)")
_MOST_PIECES = 16  # pieces between thinking tags in an outline; further ones in the middle are left out
_WRAPPED = ("<tool_response>", "</tool_response>")  # by these, Qwen's templates recognise tool results
_TAGS = ("<think>", THINK_END, *_WRAPPED)
_CONTENT = {"system": "system message", "user": "user message", "tool": "tool result", "assistant": "earlier response"}


@dataclass
class Outline:
    """A copy of a dialogue with a unique mark in place of every text.

    Args:
        prompt: the messages before the response.
        response: the last message.
        tools: the function schemas.
        marks: mark -> the kind of part that it replaces.
    """

    prompt: tuple[Message, ...] = ()
    response: Message = field(default_factory=lambda: Message("assistant", ""))
    tools: tuple[Mapping[str, Any], ...] = ()
    marks: dict[str, str] = field(default_factory=dict)

    def add_mark(self, kind: str) -> str:
        """Return a new mark for a part of this kind."""
        made = f"\ue000{len(self.marks)}\ue001"
        self.marks[made] = kind
        return made

    def lost(self, text: str) -> frozenset[str]:
        """Return the kinds of which at least one mark is missing from the text."""
        return frozenset(kind for mark, kind in self.marks.items() if mark not in text)

    def parts(self) -> frozenset[str]:
        return frozenset(self.marks.values())


def outline_key(example: Example) -> Hashable:
    """Return a key of the example's outline: examples with equal keys have equal outlines."""
    messages = (*example.prompt, example.response)
    return len(example.tools), *map(_shape, messages)


def make_outline(example: Example) -> Outline:
    """Build the outline of an example."""
    made = Outline()
    made.prompt = tuple(_outlined(made, message, "earlier ") for message in example.prompt)
    made.response = _outlined(made, example.response, "")
    made.tools = tuple(_schema(made.add_mark("tool schema")) for _ in example.tools)
    return made


def find_missing_by_text(example: Example, text: str) -> frozenset[str]:
    """Return the kinds of parts whose own text is missing; for dialogues whose outline cannot be rendered."""
    there = _letters(text)  # templates trim and indent, so compare letters and digits only
    return frozenset(kind for kind, words in _pieces(example) if _letters(words) not in there)


def parts_of(example: Example) -> frozenset[str]:
    """Return the kinds of parts that an example has."""
    return frozenset(kind for kind, _ in _pieces(example))


def _texture(content: str) -> tuple[str, ...]:
    """Return the sequence of a text's thinking tags, with `text` for each piece of text around them."""
    if "<" not in content:  # most have no tag
        return ("text",) if content.strip() else ()
    if content.startswith(_WRAPPED[0]) and content.endswith(_WRAPPED[1]):
        return (_WRAPPED[0], "text", _WRAPPED[1])
    pieces = [piece if _THINK.fullmatch(piece) else "text" for piece in _cut_at_tags(content)]
    half = _MOST_PIECES // 2
    return tuple(pieces if len(pieces) <= _MOST_PIECES else pieces[:half] + pieces[-half:])


def _cut_at_tags(content: str) -> list[str]:
    return [piece for piece in _THINK.split(content) if piece.strip()]


def _kinds(role: str, pieces: Sequence[str], earlier: str) -> Iterator[tuple[str, str]]:
    """Yield each piece of a text with its kind, "" for a tag; a piece before `</think>` is reasoning."""
    kind = _CONTENT.get(role, "user message") if earlier else "response text"
    for piece, after in zip_longest(pieces, pieces[1:]):
        thought = role == "assistant" and after == THINK_END
        yield piece, "" if piece in _TAGS else f"{earlier}reasoning" if thought else kind


def _shape(message: Message) -> Hashable:
    if message.plain:
        return message.role, _texture(message.content)
    calls = tuple("id" in call for call in message.tool_calls)
    named = bool(message.tool_call_id), bool(message.name)
    return message.role, _texture(message.content), bool(message.reasoning), calls, named


def _outlined(made: Outline, message: Message, earlier: str) -> Message:
    pieces = _kinds(message.role, _texture(message.content), earlier)
    content = "\n".join(made.add_mark(kind) if kind else piece for piece, kind in pieces)
    reasoning = made.add_mark(f"{earlier}reasoning") if message.reasoning else None
    calls = tuple(_call(made, "id" in call, f"{earlier}tool call") for call in message.tool_calls)
    name = message.name and "tool"
    return Message(message.role, content, reasoning, calls, name, message.tool_call_id and CALL_ID)


def _call(made: Outline, has_id: bool, kind: str) -> Mapping[str, Any]:
    function = {"name": made.add_mark(kind), "arguments": {"x": made.add_mark(kind)}}
    return {"type": "function", "function": function} | ({"id": CALL_ID} if has_id else {})


def _schema(name: str) -> Mapping[str, Any]:
    properties = {"x": {"type": "string", "description": "x"}}
    parameters = {"type": "object", "properties": properties, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _pieces(example: Example) -> Iterator[tuple[str, str]]:
    for message in example.prompt:
        yield from _texts(message, "earlier ")
    yield from _texts(example.response, "")
    for tool in example.tools:
        yield "tool schema", str(tool.get("function", tool).get("name", ""))


def _texts(message: Message, earlier: str) -> Iterator[tuple[str, str]]:
    yield from ((kind, piece) for piece, kind in _kinds(message.role, _cut_at_tags(message.content), earlier) if kind)
    if message.reasoning:
        yield f"{earlier}reasoning", message.reasoning
    for call in message.tool_calls:
        yield f"{earlier}tool call", str(call.get("function", call).get("name", ""))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def parts_to_count(parts: frozenset[str], lost: frozenset[str]) -> Sequence[str]:
    """Return the parts to count: all uncommon ones, and those that were left out."""
    return tuple(sorted((parts - COMMON_PARTS) | lost))
