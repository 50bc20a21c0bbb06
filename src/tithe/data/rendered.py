"""What a template makes of an example, and what it leaves out of it.

What a chat template leaves out of a dialogue is found by rendering its outline, with marks in place of the texts.
Templates drop parts without a word: a system message, tool schemas, the thinking beside a response. Looking for a
part's text in the rendering would miss a dropped "yes" that stands elsewhere, too. A mark stands nowhere else.
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
    """What a reader of the counts should know about how an example was rendered and tokenised.

    Args:
        parts: the unusual parts that the example has: its system message, reasoning, tool calls and so on.
        left_out: those of them that the template did not write at all, or not all of them.
        apart: a token of the whole text reaches over the beginning of the response, so prompt and response were
            tokenised apart.
        own_end: the response's own text ends with the marker that ends a response.
    """

    parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    apart: bool = False
    own_end: bool = False


NOTHING_ODD = Remarks()


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example in text: `prompt + response + tail` is the whole rendering.

    Args:
        prompt: all that stands before the response.
        response: what is scored, as the template writes it.
        tail: what the template puts after the response: the end-of-turn marker, a newline.
        anchor: the end of the prompt that is the same for every example.
        remarks: which parts of the example the template has left out.
    """

    prompt: str
    response: str
    tail: str
    anchor: str
    remarks: Remarks = NOTHING_ODD


@dataclass(frozen=True, slots=True)
class Turns:
    """How a second dialogue goes on after a first in one sequence.

    Args:
        opening: what the template writes before the first user's words, default system message included.
        between: what it writes between a response and the next user's words, in place of the opening.
            None where a further turn cannot be rendered.
        tail: what it writes after the last response.
        system_opening: what it writes before the words of a system message; None where it takes none.
    """

    opening: str
    between: str | None
    tail: str = ""
    system_opening: str | None = None


USUAL = frozenset({"user message", "earlier response", "response text"})  # not worth a word where they are written
CALL_ID = "abcdefgh1"  # nine letters and digits, as Mistral's templates want them
THINK_END = "</think>"
_THINK = re.compile(r"(</?think>)")
_MOST_PIECES = 16  # of a text with thinking in it, cut at its tags; what lies between the first and the last is alike
_WRAPPED = ("<tool_response>", "</tool_response>")  # Qwen's templates tell tools' results by these
_TAGS = ("<think>", THINK_END, *_WRAPPED)
_CONTENT = {"system": "system message", "user": "user message", "tool": "tool result", "assistant": "earlier response"}


@dataclass
class Outline:
    """A dialogue of the same shape with a mark for every text.

    Args:
        prompt: its messages before the response.
        response: its last message.
        tools: its function schemas.
        marks: mark -> the kind of part that it stands for.
    """

    prompt: tuple[Message, ...] = ()
    response: Message = field(default_factory=lambda: Message("assistant", ""))
    tools: tuple[Mapping[str, Any], ...] = ()
    marks: dict[str, str] = field(default_factory=dict)

    def mark(self, kind: str) -> str:
        made = f"\ue000{len(self.marks)}\ue001"
        self.marks[made] = kind
        return made

    def lost(self, text: str) -> frozenset[str]:
        """Kinds of which at least one mark is not in the text."""
        return frozenset(kind for mark, kind in self.marks.items() if mark not in text)

    def parts(self) -> frozenset[str]:
        return frozenset(self.marks.values())


def shape(example: Example) -> Hashable:
    """Return what decides the outline: examples of one shape share it."""
    messages = (*example.prompt, example.response)
    return len(example.tools), *map(_shape, messages)


def outline(example: Example) -> Outline:
    """Return the example's outline."""
    made = Outline()
    made.prompt = tuple(_outlined(made, message, "earlier ") for message in example.prompt)
    made.response = _outlined(made, example.response, "")
    made.tools = tuple(_schema(made.mark("tool schema")) for _ in example.tools)
    return made


def missing_by_text(example: Example, text: str) -> frozenset[str]:
    """Return the kinds of parts whose words are not in the text, for dialogues whose outline cannot be rendered."""
    there = _letters(text)
    return frozenset(kind for kind, words in _pieces(example) if _letters(words) not in there)


def parts_of(example: Example) -> frozenset[str]:
    """Return the kinds of parts that an example has."""
    return frozenset(kind for kind, _ in _pieces(example))


def _texture(content: str) -> tuple[str, ...]:
    """A text's thinking tags, and `text` where there is something before, between or after them."""
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
    """Yield each piece of a text with its kind, "" for a tag: an assistant thinks where an end of thinking follows."""
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
    content = "\n".join(made.mark(kind) if kind else piece for piece, kind in pieces)
    reasoning = made.mark(f"{earlier}reasoning") if message.reasoning else None
    calls = tuple(_call(made, "id" in call, f"{earlier}tool call") for call in message.tool_calls)
    name = message.name and "tool"
    return Message(message.role, content, reasoning, calls, name, message.tool_call_id and CALL_ID)


def _call(made: Outline, has_id: bool, kind: str) -> Mapping[str, Any]:
    function = {"name": made.mark(kind), "arguments": {"x": made.mark(kind)}}
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


def unusual(parts: frozenset[str], lost: frozenset[str]) -> Sequence[str]:
    """Return the parts that are counted: all but the usual ones, and these where they are lost."""
    return tuple(sorted((parts - USUAL) | lost))
