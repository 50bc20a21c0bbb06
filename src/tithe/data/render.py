"""Turn examples into token ids with a response span: the single definition of "response".

The response has the same ids in every pass:

    given   [lead] prompt response
    alone   [lead] [header] response
    shown   [lead] shot-prompt shot-response between prompt response
    rated   [lead] question reply

Prompt and response are tokenised as one text and split where the tokenizer's offsets put the response. If one token
spans that place, the two are tokenised separately, which is counted. Worked examples (shots) are joined by ids if
special tokens separate them, and otherwise tokenised together with the rest.

The lead is what a sequence begins with: BOS, or nothing. It occurs once. The end-of-turn marker is scored only with
`eos`. All truncation happens here and is counted in the pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from tithe.data.frame import NO_IDS, Frame
from tithe.data.rendered import NO_REMARKS, Remarks, Rendered
from tithe.data.templates import resolve_template
from tithe.data.tokens import TextCut, TextTokenizer, bad_unicode
from tithe.errors import SettingsError
from tithe.records import Example, IntArray, Pass, PassKind, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bos = Literal["auto", "always", "never"]
Truncation = Literal["response", "prompt", "problem"]
# Context with worked examples: their ids, the ids that separate them from the last prompt, and the rest of that prompt.
ShotIds: TypeAlias = tuple[IntArray, IntArray, IntArray]


@dataclass(frozen=True)
class RenderSettings:
    """How examples become tokens; lands in the run record.

    Args:
        template: a name of `templates.NAMES`, or a path to a Jinja file.
        max_length: tokens of the longest pass.
        bos: `auto` does what the tokenizer does by itself, and for chat templates what the template writes.
            `always` adds a missing one, `never` takes a present one away. Never doubled.
        eos: score what ends the response, too: EOS, or the chat template's end-of-turn marker.
        alone_header: text before the response in the `alone` pass; it is context, not scored.
        truncation: what gives way to `max_length`: the `response`'s end (the same in every pass), the `prompt`'s
            beginning, or nothing (`problem`: the example is listed as one). Worked examples give way before both.
    """

    template: str = "auto"
    max_length: int = 2048
    bos: Bos = "auto"
    eos: bool = False
    alone_header: str = ""
    truncation: Truncation = "response"


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The ids of one example, not truncated; every pass is built from them.

    Args:
        lead: ids at the beginning of the sequence: BOS, or none.
        prompt: ids of the prompt without the lead.
        response: the scored ids; with the end-of-turn marker if `eos` is set.
        after: ids between this response and a next dialogue that has its own opening.
        text: the rendered text; None if passes with worked examples can be built from ids.
        remarks: facts about the rendering that are counted.
    """

    lead: IntArray
    prompt: IntArray
    response: IntArray
    after: IntArray
    text: Rendered | None = field(default=None, kw_only=True)
    remarks: Remarks = field(default=NO_REMARKS, kw_only=True)

    def __len__(self) -> int:
        return len(self.lead) + len(self.prompt) + len(self.response)

    @property
    def ids(self) -> IntArray:
        """The `given` pass, not truncated: (tokens,)."""
        return np.concatenate([self.lead, self.prompt, self.response])


class Renderer(ABC):
    """The base class of renderers, which turn examples into passes under the settings in `run.json`."""

    settings: RenderSettings

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings as resolved for this tokenizer, with the hash of the template's source."""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[EncodedExample | Problem]:
        """Return each example in ids, or why it has none; a batch takes two calls of the fast tokenizer."""

    @abstractmethod
    def build(self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()) -> Pass | Problem:
        """Return one pass, truncated to the maximal length, or why there is none."""


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, settings: RenderSettings, *, context_window: int | None = None
) -> Renderer:
    """Return the renderer for a tokenizer.

    Raises:
        SettingsError: a setting is invalid, or this tokenizer or context window does not allow it.
        TemplateError: the template does not exist or cannot render.
    """
    check_settings(settings, context_window)
    return TemplateRenderer(tokenizer, settings)


def check_settings(settings: RenderSettings, context_window: int | None) -> None:
    """Raise a `SettingsError` for values that no renderer can use."""
    for name, value, known in (("bos", settings.bos, Bos), ("truncation", settings.truncation, Truncation)):
        if value not in get_args(known):
            raise SettingsError(f"unknown {name} `{value}`", hint=f"known are: {', '.join(get_args(known))}")
    if settings.max_length < 1:
        raise SettingsError(f"max length must be at least 1 token, not {settings.max_length}")
    if context_window is not None and settings.max_length > context_window:
        raise SettingsError(
            f"max length {settings.max_length} is more than the model's context window of {context_window} tokens",
            hint=f"take `--max-length {context_window}` or less",
        )


class TemplateRenderer(Renderer):
    """The default renderer: by construction, the response has the same ids in every pass."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: RenderSettings) -> None:
        self.settings = settings
        self.template = resolve_template(settings.template, tokenizer)
        self._tokens = TextTokenizer(tokenizer)
        self._frame = Frame(tokenizer, self._tokens, self.template, bos=settings.bos, eos=settings.eos)
        self._header = self._frame.ids(settings.alone_header)

    def describe(self) -> dict[str, Any]:
        return {**asdict(self.settings), **self.template.describe(), **self._frame.describe()}

    def render(self, example: Example) -> Rendered | Problem:
        """Return the example's texts, which `encode` tokenises."""
        rendered = self.template.render(example)
        if isinstance(rendered, Rendered):
            why = bad_unicode(rendered.prompt + rendered.response + rendered.tail)
            if why:
                return Problem(why)
        return rendered

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample | Problem]:
        # Rendering may fail for single examples: tokenise the good ones in one batch, then put results back in order.
        texts = [self.render(example) for example in examples]
        good = [text for text in texts if isinstance(text, Rendered)]
        wholes = [text.prompt + self._scored(text) for text in good]
        ends = [len(text.prompt) + len(text.response) for text in good]
        cuts = self._tokens.encode_cut(wholes, [len(text.prompt) for text in good], ends)
        encoded = map(self._encoded, good, cuts, self._cut_apart(good, cuts))
        return [text if isinstance(text, Problem) else next(encoded) for text in texts]

    def build(self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()) -> Pass | Problem:
        if kind == "rated":
            return self._rated(encoded)
        cut = self._fit(encoded)
        if isinstance(cut, Problem):
            return cut
        prompt, response = encoded.prompt[cut.prompt :], encoded.response[: len(encoded.response) - cut.response]
        # The response is truncated alike in all passes: they must score the same tokens.
        if kind == "alone":
            return _join(encoded.lead, self._header, response, CutTokens(0, cut.response))
        if kind == "given" or not shots:
            return _join(encoded.lead, prompt, response, cut)
        joined = self._join_shots_by_ids(shots, encoded) or self._join_shots_as_text(shots, encoded)
        return self._shown(encoded.lead, joined, response, cut)

    def _shown(self, lead: IntArray, joined: ShotIds, response: IntArray, cut: CutTokens) -> Pass | Problem:
        """Return a pass with worked examples, which are truncated first, from their beginning."""
        before, between, rest = joined
        fixed = len(lead) + len(between) + len(rest) + len(response)
        over = max(0, fixed + len(before) - self.settings.max_length)
        if over and self.settings.truncation == "problem":
            n = fixed + len(before)
            return Problem(f"longer than max length with its shots: {n} > {self.settings.max_length} tokens")
        if over >= len(before):  # with no shot left this would be the `given` pass
            return Problem(
                f"no room for the worked example: the rest of the pass has {fixed} tokens, "
                f"max length is {self.settings.max_length}"
            )
        context = np.concatenate([before[over:], between, rest])
        return _join(lead, context, response, replace(cut, shots=over), shots=len(lead) + len(before) - over)

    def _rated(self, encoded: EncodedExample) -> Pass | Problem:
        """Return the pass of a question about an example; never truncated, as that would change the question."""
        if len(encoded) > self.settings.max_length:
            return Problem(
                f"the question about it is longer than max length: {len(encoded)} > {self.settings.max_length} tokens"
            )
        if not len(encoded.lead) + len(encoded.prompt):
            return Problem("the question about it is empty")
        return _join(encoded.lead, encoded.prompt, encoded.response, CutTokens(0, 0))

    def _scored(self, text: Rendered) -> str:
        """Return the response's text, with the end-of-turn marker if that is scored."""
        return text.response + text.tail.rstrip() if self.settings.eos else text.response

    def _cut_apart(self, texts: Sequence[Rendered], cuts: Sequence[TextCut]) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield prompt and response ids of each text, tokenised separately if one token spans both."""
        whole = [text for text, cut in zip(texts, cuts, strict=True) if cut.start is None]
        prompts = iter(self._tokens.encode([text.prompt for text in whole]))
        # Not after the prompt's own end: there, one token spans both.
        responses = iter(self._tokens.encode_after(["\n"] * len(whole), [self._scored(text) for text in whole]))
        for cut in cuts:
            apart = cut.start is None
            yield (next(prompts), next(responses)) if apart else (cut.ids[: cut.start], cut.ids[cut.start :])

    def _encoded(self, text: Rendered, cut: TextCut, ids: tuple[IntArray, IntArray]) -> EncodedExample | Problem:
        prompt, response = ids
        if not len(response) or (cut.start is not None and cut.mark <= cut.start < len(cut.ids)):
            return Problem("empty response: the tokenizer makes no token of it")
        # Where a normalizer drops characters there may be no split, but separate tokenising can give the same ids.
        apart = cut.start is None and not np.array_equal(np.concatenate(ids), cut.ids)
        own_end = self._frame.has_own_end(text)
        # A response that already ends with EOS must not get a second one.
        if not own_end:
            response = np.concatenate([response, self._frame.end])
        lead, prompt = self._frame.split(prompt)
        remarks = text.remarks
        if own_end or apart:
            remarks = replace(remarks, own_end=own_end, apart=apart)
        kept = text if self._frame.joint is None else None
        return EncodedExample(lead, prompt, response, self._frame.tail_ids(text.tail), text=kept, remarks=remarks)

    def _fit(self, encoded: EncodedExample) -> CutTokens | Problem:
        """Return how many tokens to truncate from prompt and response; the same for all passes."""
        limit, mode = self.settings.max_length, self.settings.truncation
        # The response must fit after the prompt and after the header, so that all passes score the same tokens.
        context = len(encoded.lead) + max(len(encoded.prompt), len(self._header))
        over = context + len(encoded.response) - limit
        if over <= 0:
            return CutTokens(0, 0)
        if mode == "problem":
            return Problem(f"longer than max length: {over + limit} > {limit} tokens")
        if mode == "prompt":  # the response and the header are kept whole
            least = len(encoded.lead) + len(self._header) + len(encoded.response)
            if least > limit:
                return Problem(f"the response alone is longer than max length: {least} > {limit} tokens")
            return CutTokens(max(0, len(encoded) - limit), 0)
        if over >= len(encoded.response):
            return Problem(f"no response token left: the prompt alone has {context} tokens, max length is {limit}")
        return CutTokens(0, over)

    def _join_shots_by_ids(self, shots: Sequence[EncodedExample], last: EncodedExample) -> ShotIds | None:
        """Return the shots as earlier dialogues, joined by ids; None if ids cannot be joined.

        The first part depends only on the shots, so that passes with the same shots share a prefix.
        """
        joint = self._frame.joint
        if joint is None:
            return None
        pieces: list[IntArray] = []
        prompts = [encoded.prompt for encoded in (*shots, last)]
        leads = [encoded.lead if self._frame.bos_opens_turns else NO_IDS for encoded in (*shots[1:], last)]
        for i, shot in enumerate(shots):
            between = shot.after
            # The next prompt has the usual opening: replace it by what the template writes between turns.
            if joint.matches(prompts[i + 1]):
                between = joint.between
                prompts[i + 1] = prompts[i + 1][len(joint.skipped) :]
            pieces += [prompts[i], shot.response, np.concatenate([between, leads[i]])]
        return np.concatenate(pieces[:-1]), pieces[-1], prompts[-1]

    def _join_shots_as_text(self, shots: Sequence[EncodedExample], last: EncodedExample) -> ShotIds:
        """Return the shots as earlier dialogues, tokenised with the last one as one text and split afterwards."""
        whole, places = "", list[int]()  # beginning and end of each response
        before: Rendered | None = None
        for one in (*shots, last):
            assert one.text is not None, "examples keep their text if ids cannot be joined"
            whole += one.text.prompt if before is None else self._frame.continuation(before, one.text.prompt)
            places.append(len(whole))
            before = one.text
            whole += self._scored(before) + ("" if self._frame.has_own_end(before) else self._frame.end_text)
            places.append(len(whole))
        start, shown = places[-2], places[-3]
        (cut,) = self._tokens.encode_cut([whole], [start], [shown])
        if cut.start is None:  # one token spans prompt and response: tokenise the context alone
            (cut,) = self._tokens.encode_cut([whole[:start]], [start], [shown])
        context = cut.ids[: cut.start]
        rest = self._frame.split(context)[1]
        cut_at = min(cut.mark, len(context)) - (len(context) - len(rest))
        return rest[:cut_at], NO_IDS, rest[cut_at:]


@dataclass(frozen=True, slots=True)
class CutTokens:
    """The numbers of tokens truncated from a pass."""

    prompt: int
    response: int
    shots: int = 0


def _join(lead: IntArray, context: IntArray, response: IntArray, cut: CutTokens, shots: int = 0) -> Pass:
    ids = np.concatenate([lead, context, response])
    return Pass(ids, len(lead) + len(context), cut.prompt, cut.response, cut.shots, shots)
