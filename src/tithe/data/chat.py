"""Render dialogues with a Jinja chat template and find the response in the text.

The dialogue is rendered twice, the second time with a sentinel in place of the response. The common beginning is the
prompt, the common end is the tail, and the rest of the first rendering is the response: trimmed text, reasoning and
tool calls exactly as the template writes them. If a template begins a response differently depending on its content
(reasoning, tool calls), the response begins where the generation prompt ends.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tithe.data.bounded_template import BoundedTemplate
from tithe.data.rendered import (
    NO_REMARKS,
    Outline,
    Remarks,
    Rendered,
    TurnTexts,
    find_missing_by_text,
    make_outline,
    outline_key,
    parts_of,
    parts_to_count,
)
from tithe.errors import TemplateError
from tithe.records import Example, Message, Problem

DATE = datetime.datetime(2024, 7, 26)  # today's date for every template, so that scores do not change from day to day
_SENTINELS = [
    chr(code) for code in range(0xE000, 0xF8FF)
]  # private-use characters: no template and hardly any text uses them


_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # how special tokens look: `<|im_end|>`, `</s>`, `[/INST]`
_LONGEST_MARKER = 80
_MOST_QUOTED = 200  # characters of a template's error message
_MOST_SHAPES = 10_000  # outlines whose remarks are cached


class TemplateRefusal(Exception):
    """An error that a template raised for a dialogue."""


class ChatTemplate:
    """A Jinja chat template, run as transformers runs it (sandboxed, same filters and tags) but with a fixed date.

    Args:
        name: `chat` or the file's path.
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, ... by name.
    """

    writes_markers = True  # the text contains BOS and end-of-turn markers

    def __init__(self, name: str, source: str, special_tokens: Mapping[str, Any]) -> None:
        self.name = name
        self.source = source
        self._special_tokens = {
            "bos_token": "",
            "eos_token": "",
            **special_tokens,
        }  # defaults: not every tokenizer has both
        self._jinja = BoundedTemplate(name, source)
        self._remarks: dict[Hashable, Remarks | None] = {}
        self._parts = False
        self._detect_content_form()
        self.turns = self._find_turns()

    @property
    def source_hash(self) -> str:
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def describe(self) -> dict[str, str]:
        return {"template": self.name, "template_hash": self.source_hash, "template_date": DATE.date().isoformat()}

    def render(self, example: Example) -> Rendered | Problem:
        """Return the example's texts, or the template's own error."""
        calls = any(message.tool_calls for message in (*example.prompt, example.response))
        try:
            return self._split(example, json_arguments=False)
        except TemplateRefusal as refusal:
            if not calls:
                return Problem(f"the template refuses the dialogue: {refusal}")
            first = refusal
        try:  # some templates concatenate the arguments of tool calls as text
            return self._split(example, json_arguments=True)
        except TemplateRefusal:
            return Problem(f"the template refuses the dialogue: {first}")

    def text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, generation: bool = False
    ) -> str:
        """Render messages given as dicts.

        Raises:
            TemplateRefusal: with the template's own error.
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
        except Exception as error:  # a template is foreign code and may raise anything
            said = " ".join(str(error).split()) or type(error).__name__
            raise TemplateRefusal(said if len(said) <= _MOST_QUOTED else f"{said[:_MOST_QUOTED]} ...") from error

    def _split(self, example: Example, *, json_arguments: bool) -> Rendered | Problem:
        response = example.response
        before = [self._message(message, json_arguments) for message in example.prompt]
        full = self.text([*before, self._message(response, json_arguments)], example.tools)
        # A sentinel that occurs in the dialogue itself would be found in the wrong place.
        mark = next((char for char in _SENTINELS if char not in full), None)
        if mark is None:
            return Problem("the text uses every private-use character, so none is left to mark the response with")
        probe = self.text([*before, self._message(Message("assistant", mark))], example.tools)
        if mark not in probe:
            return Problem("the template leaves the response out")
        start, stop = self._find_span(full, probe, mark)
        # Here the template may write a different header than before the plain sentinel (e.g. gpt-oss's channels).
        if response.reasoning or response.tool_calls or not full.startswith(probe[: probe.index(mark)]):
            start = self._generation_start(full, before, example.tools) or start
        if not full[start:stop].strip():
            blank = not (response.content.strip() or response.reasoning or response.tool_calls)
            return Problem("empty response" if blank else "the template leaves the response out")
        cut = self._cut(full, start, stop)
        return replace(cut, remarks=self.find_remarks(example, full, json_arguments))

    def find_remarks(self, example: Example, full: str, json_arguments: bool = False) -> Remarks:
        """Return remarks on what the template leaves out; computed once for all dialogues with equal outlines."""
        key = (json_arguments, outline_key(example))
        if key not in self._remarks:
            if len(self._remarks) >= _MOST_SHAPES:  # odd data sets have a new outline in nearly every record
                self._remarks.clear()
            self._remarks[key] = self._omitted(make_outline(example), json_arguments)
        found = self._remarks[key]
        return found or make_remarks(parts_of(example), find_missing_by_text(example, full))

    def _omitted(self, drawn: Outline, json_arguments: bool) -> Remarks | None:
        """Return remarks on what the template leaves out of an outline; None if it refuses to render it."""
        said = [self._message(message, json_arguments) for message in (*drawn.prompt, drawn.response)]
        try:
            return make_remarks(drawn.parts(), drawn.lost(self.text(said, drawn.tools)))
        except TemplateRefusal:
            return None

    def _cut(self, full: str, start: int, stop: int) -> Rendered:
        anchor = common_suffix(full[:start], self._anchor)
        if anchor.endswith(" "):
            # Most tokenizers merge a space with the word after it. A space that the template writes before the
            # response therefore goes to the response; else its first token would be one that never follows a space.
            start, anchor = start - 1, anchor[:-1]
        return Rendered(full[:start], full[start:stop], full[stop:], anchor)

    def _find_span(self, full: str, probe: str, mark: str) -> tuple[int, int]:
        """Return start and end of the response in `full`, by comparison with `probe`, its rendering with a mark."""
        # Usually both renderings agree up to the mark and after it. If not, take the part in which they differ.
        first, after = probe.index(mark), len(probe) - probe.rindex(mark) - 1
        start = first if full.startswith(probe[:first]) else self._move_off_marker(full, _common_prefix(full, probe))
        if full.endswith(probe[len(probe) - after :]):
            return start, max(start, len(full) - after)
        return start, max(start, self._move_off_marker(full, len(full) - len(common_suffix(full, probe))))

    def _move_off_marker(self, full: str, cut: int) -> int:
        """Return the cut, moved before a marker that it would split (`<|eom_id|>` against `<|eot_id|>`)."""
        for found in _MARKER.finditer(full, max(0, cut - _LONGEST_MARKER), cut + _LONGEST_MARKER):
            if found.start() < cut < found.end():
                return found.start()
        return cut

    def _generation_start(self, full: str, before: list[dict[str, Any]], tools: Sequence[Any]) -> int | None:
        """Return where the model would begin to generate: there, reasoning and tool calls differ from content."""
        try:
            header = self.text(before, tools, generation=True)
            if header == self.text(before, tools):
                return None
        except TemplateRefusal:
            return None
        return len(header) if full.startswith(header) else None

    def _message(self, message: Message, json_arguments: bool = False) -> dict[str, Any]:
        out = message.as_dict()
        if self._parts:  # templates of multimodal models loop over a list of parts
            out["content"] = [{"type": "text", "text": message.content}]
        if message.reasoning is not None:
            out["thinking"] = message.reasoning  # the name in gpt-oss's template
        if json_arguments:
            out["tool_calls"] = [_with_json_arguments(call) for call in message.tool_calls]
            if not message.tool_calls:
                del out["tool_calls"]
        return out

    def _detect_content_form(self) -> None:
        """Detect whether the template takes contents as texts or as parts, and what it writes before responses."""
        user, mark = _SENTINELS[1], _SENTINELS[0]
        refusals = []
        for self._parts in (False, True):
            said = [self._message(Message("user", user)), self._message(Message("assistant", mark))]
            try:
                text, again = self.text(said), self.text(said)
            except TemplateRefusal as refusal:
                refusals.append(str(refusal))
                continue
            if text != again:  # e.g. a clock: the same record would get another score each time
                raise TemplateError(f"template `{self.name}` writes the same dialogue differently each time")
            if mark in text:
                before = text[: text.index(mark)]
                self._anchor = before[before.rfind(user) + 1 :] if user in before else ""
                return
        why = refusals[0] if refusals else "it leaves the assistant's messages out"
        raise TemplateError(f"template `{self.name}` cannot render a user's message and its answer: {why}")

    def _find_turns(self) -> TurnTexts:
        marks = _SENTINELS[:4]
        roles = ("user", "assistant", "user", "assistant")
        try:
            text = self.text([self._message(Message(role, mark)) for role, mark in zip(roles, marks, strict=True)])
        except TemplateRefusal:
            return TurnTexts("", None)
        if any(text.count(mark) != 1 for mark in marks):
            return TurnTexts("", None)
        first, answer, second, last = (text.index(mark) for mark in marks)
        return TurnTexts(text[:first], text[answer + 1 : second], text[last + 1 :], self._system_opening())

    def _system_opening(self) -> str | None:
        roles = ("system", "user", "assistant")
        try:
            text = self.text(
                [self._message(Message(role, mark)) for role, mark in zip(roles, _SENTINELS, strict=False)]
            )
        except TemplateRefusal:
            return None
        return text[: text.index(_SENTINELS[0])] if _SENTINELS[0] in text else None


def make_remarks(parts: frozenset[str], lost: frozenset[str]) -> Remarks:
    """Return remarks on these parts; most examples have none and share one object."""
    counted = parts_to_count(parts, lost)
    return Remarks(tuple(counted), tuple(sorted(lost))) if counted else NO_REMARKS


def _with_json_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", {}))
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def _common_prefix(a: str, b: str) -> int:
    """Return how many characters both texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def common_suffix(a: str, b: str) -> str:
    """Return the longest text with which both texts end."""
    return b if a.endswith(b) else b[len(b) - _common_prefix(a[::-1], b[::-1]) :]
