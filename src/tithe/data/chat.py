"""Chat templates: a dialogue in Jinja, and where in its text the response lies.

The dialogue is rendered as it is and again with a sentinel in the response's place. What both renderings begin with
is the prompt, what both end with is the tail, and what lies between in the real one is the response: trimmed text,
thinking and tool calls exactly as the template writes them. Where a template writes the beginning of a response
differently for its content (thinking, tool calls), the response begins where the generation prompt ends.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tithe.data.bounded import BoundedTemplate
from tithe.data.rendered import (
    NOTHING_ODD,
    Outline,
    Remarks,
    Rendered,
    Turns,
    missing_by_text,
    outline,
    parts_of,
    shape,
    unusual,
)
from tithe.errors import TemplateError
from tithe.records import Example, Message, Problem

DATE = datetime.datetime(2024, 7, 26)  # every template's today, so that scores do not change overnight
_PRIVATE = [chr(code) for code in range(0xE000, 0xF8FF)]  # sentinels: no template and hardly a text uses them


_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # as special tokens are written: `<|im_end|>`, `</s>`, `[/INST]`
_LONGEST = 80
_MOST_QUOTED = 200  # characters of what a template says
_MOST_SHAPES = 10_000  # of dialogues, whose omissions are remembered


class Refusal(Exception):
    """The template will not render this dialogue."""


class ChatTemplate:
    """A chat template in Jinja, as transformers runs it (sandboxed, same filters and tags), with a fixed date.

    Args:
        name: `chat` or the file's path.
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, ... by name.
    """

    writes_markers = True  # BOS and the end of a turn are in its text

    def __init__(self, name: str, source: str, special_tokens: Mapping[str, Any]) -> None:
        self.name = name
        self.source = source
        self._special_tokens = {"bos_token": "", "eos_token": "", **special_tokens}  # not every tokenizer has them
        self._jinja = BoundedTemplate(name, source)
        self._remarks: dict[Hashable, Remarks | None] = {}
        self._parts = False
        self._settle()
        self.turns = self._find_turns()

    @property
    def source_hash(self) -> str:
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def describe(self) -> dict[str, str]:
        return {"template": self.name, "template_hash": self.source_hash, "template_date": DATE.date().isoformat()}

    def render(self, example: Example) -> Rendered | Problem:
        """The example's texts, or the template's own sentence why not."""
        calls = any(message.tool_calls for message in (*example.prompt, example.response))
        try:
            return self._split(example, json_arguments=False)
        except Refusal as refusal:
            if not calls:
                return Problem(f"the template refuses the dialogue: {refusal}")
            first = refusal
        try:  # some templates join the arguments of tool calls as text
            return self._split(example, json_arguments=True)
        except Refusal:
            return Problem(f"the template refuses the dialogue: {first}")

    def text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, generation: bool = False
    ) -> str:
        """The rendering of messages as dicts.

        Raises:
            Refusal: with the template's own sentence.
        """
        variables = {
            **self._special_tokens,
            "messages": messages,
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": generation,
            "strftime_now": DATE.strftime,
        }
        try:
            return self._jinja.render(variables)
        except Exception as error:  # a template is foreign code: whatever it raises is about this dialogue
            said = " ".join(str(error).split()) or type(error).__name__
            raise Refusal(said if len(said) <= _MOST_QUOTED else f"{said[:_MOST_QUOTED]} ...") from error

    def _split(self, example: Example, *, json_arguments: bool) -> Rendered | Problem:
        response = example.response
        before = [self._message(message, json_arguments) for message in example.prompt]
        full = self.text([*before, self._message(response, json_arguments)], example.tools)
        mark = next((char for char in _PRIVATE if char not in full), None)
        if mark is None:
            return Problem("the text uses every private-use character, so none is left to mark the response with")
        probe = self.text([*before, self._message(Message("assistant", mark))], example.tools)
        if mark not in probe:
            return Problem("the template leaves the response out")
        start, stop = self._span(full, probe, mark)
        if response.reasoning or response.tool_calls or not full.startswith(probe[: probe.index(mark)]):
            start = self._generation_start(full, before, example.tools) or start
        if not full[start:stop].strip():
            blank = not (response.content.strip() or response.reasoning or response.tool_calls)
            return Problem("empty response" if blank else "the template leaves the response out")
        cut = self._cut(full, start, stop)
        return replace(cut, remarks=self.find_remarks(example, full, json_arguments))

    def find_remarks(self, example: Example, full: str, json_arguments: bool = False) -> Remarks:
        """Return what the template leaves out of the dialogue; found once for all dialogues of a shape."""
        key = (json_arguments, shape(example))
        if key not in self._remarks:
            if len(self._remarks) >= _MOST_SHAPES:
                self._remarks.clear()
            self._remarks[key] = self._omitted(outline(example), json_arguments)
        found = self._remarks[key]
        return found or remarks(parts_of(example), missing_by_text(example, full))

    def _omitted(self, drawn: Outline, json_arguments: bool) -> Remarks | None:
        """Return what the template leaves out of an outline; None where it refuses to render it."""
        said = [self._message(message, json_arguments) for message in (*drawn.prompt, drawn.response)]
        try:
            return remarks(drawn.parts(), drawn.lost(self.text(said, drawn.tools)))
        except Refusal:
            return None

    def _cut(self, full: str, start: int, stop: int) -> Rendered:
        anchor = _common_suffix(full[:start], self._anchor)
        if anchor.endswith(" "):
            # A space that the template writes before the response is half of the response's first token. It goes
            # there, or tokenizers that write spaces in front of words would see a word they never see after a space.
            start, anchor = start - 1, anchor[:-1]
        return Rendered(full[:start], full[start:stop], full[stop:], anchor)

    def _span(self, full: str, probe: str, mark: str) -> tuple[int, int]:
        first, after = probe.index(mark), len(probe) - probe.rindex(mark) - 1
        start = first if full.startswith(probe[:first]) else self._whole(full, _common_prefix(full, probe))
        if full.endswith(probe[len(probe) - after :]):
            return start, max(start, len(full) - after)
        return start, max(start, self._whole(full, len(full) - len(_common_suffix(full, probe))))

    def _whole(self, full: str, cut: int) -> int:
        """The cut, moved to the front of a marker that it would halve (`<|eom_id|>` against `<|eot_id|>`)."""
        for found in _MARKER.finditer(full, max(0, cut - _LONGEST), cut + _LONGEST):
            if found.start() < cut < found.end():
                return found.start()
        return cut

    def _generation_start(self, full: str, before: list[dict[str, Any]], tools: Sequence[Any]) -> int | None:
        """Where the model would begin to write: thinking and tool calls differ from plain content right there."""
        try:
            header = self.text(before, tools, generation=True)
            if header == self.text(before, tools):
                return None
        except Refusal:
            return None
        return len(header) if full.startswith(header) else None

    def _message(self, message: Message, json_arguments: bool = False) -> dict[str, Any]:
        out = message.as_dict()
        if self._parts:
            out["content"] = [{"type": "text", "text": message.content}]
        if message.reasoning is not None:
            out["thinking"] = message.reasoning  # what gpt-oss calls it
        if json_arguments:
            out["tool_calls"] = [_with_json_arguments(call) for call in message.tool_calls]
            if not message.tool_calls:
                del out["tool_calls"]
        return out

    def _settle(self) -> None:
        """Find whether contents are texts or lists of parts, and what stands before every response."""
        user, mark = _PRIVATE[1], _PRIVATE[0]
        refusals = []
        for self._parts in (False, True):
            said = [self._message(Message("user", user)), self._message(Message("assistant", mark))]
            try:
                text, again = self.text(said), self.text(said)
            except Refusal as refusal:
                refusals.append(str(refusal))
                continue
            if text != again:
                raise TemplateError(f"template `{self.name}` writes the same dialogue differently each time")
            if mark in text:
                before = text[: text.index(mark)]
                self._anchor = before[before.rfind(user) + 1 :] if user in before else ""
                return
        why = refusals[0] if refusals else "it leaves the assistant's messages out"
        raise TemplateError(f"template `{self.name}` cannot render a user's message and its answer: {why}")

    def _find_turns(self) -> Turns:
        marks = _PRIVATE[:4]
        roles = ("user", "assistant", "user", "assistant")
        try:
            text = self.text([self._message(Message(role, mark)) for role, mark in zip(roles, marks, strict=True)])
        except Refusal:
            return Turns("", None)
        if any(text.count(mark) != 1 for mark in marks):
            return Turns("", None)
        first, answer, second, last = (text.index(mark) for mark in marks)
        return Turns(text[:first], text[answer + 1 : second], text[last + 1 :], self._system_opening())

    def _system_opening(self) -> str | None:
        roles = ("system", "user", "assistant")
        try:
            text = self.text([self._message(Message(role, mark)) for role, mark in zip(roles, _PRIVATE, strict=False)])
        except Refusal:
            return None
        return text[: text.index(_PRIVATE[0])] if _PRIVATE[0] in text else None


def remarks(parts: frozenset[str], lost: frozenset[str]) -> Remarks:
    """Return what is to be counted; the usual case shares one object."""
    counted = unusual(parts, lost)
    return Remarks(tuple(counted), tuple(sorted(lost))) if counted else NOTHING_ODD


def _with_json_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", {}))
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def _common_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common_suffix(a: str, b: str) -> str:
    return b if a.endswith(b) else b[len(b) - _common_prefix(a[::-1], b[::-1]) :]
