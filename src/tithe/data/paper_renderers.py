"""Renderers that tokenise like the papers' own scripts, quirks included, to reproduce their numbers.

Their behaviour was found by running the scripts. Unlike `TemplateRenderer`, each pass tokenises its own text, so that
the responses of two passes may differ by a token, and long texts are truncated differently.

CPQS renders prompt and dialogue separately, both with the generation prompt. With n the number of the prompt's ids, the
response is the dialogue's ids from the n-th on; it ends with what the template writes after a response.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tithe.data.chat import ChatTemplate, TemplateRefusal, make_remarks
from tithe.data.render import EncodedExample, Renderer, RenderSettings, check_settings
from tithe.data.rendered import Remarks, parts_of
from tithe.data.templates import TEXT_TEMPLATES, resolve_template
from tithe.data.tokens import TextTokenizer, bad_unicode
from tithe.errors import SettingsError, did_you_mean
from tithe.records import Example, IntArray, Message, Pass, PassKind, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_RESPONSE = "no response token left"


@dataclass(frozen=True, slots=True)
class SeparatelyEncoded(EncodedExample):
    """The ids of one example whose two passes are tokenised from separate texts, each with BOS.

    `prompt` and `response` are the ids of prompt + response, split at `len(encode(prompt))`. This need not be where the
    response's own first token begins.

    Args:
        alone: ids of the text of the `alone` pass.
        alone_start: index of the first scored token there.
    """

    alone: IntArray
    alone_start: int


class _PaperRenderer(Renderer):
    """The common part of the IFD and Superfiltering scripts.

    They tokenise prompt + response as one text, and take the number of prompt tokens from the prompt tokenised alone.
    """

    preset: ClassVar[str]
    templates: ClassVar[tuple[str, ...]]
    header: ClassVar[str] = ""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: RenderSettings, *, context_window: int | None = None
    ) -> None:
        check_settings(settings, context_window)
        name = self.templates[0] if settings.template == "auto" else settings.template
        if name not in self.templates:
            hint = did_you_mean(name, self.templates)
            raise SettingsError(f"preset `{self.preset}` has no template `{name}`", hint=hint)
        # The scripts have no options for the rest: any other value would not reproduce the paper.
        fixed = RenderSettings(settings.template, settings.max_length)
        if settings != fixed:
            odd = [key for key, value in asdict(settings).items() if value != getattr(fixed, key)]
            raise SettingsError(
                f"preset `{self.preset}` fixes {', '.join(f'`{key}`' for key in odd)} as the authors' code does",
                hint="leave the setting or the preset out",
            )
        self.settings = settings
        self.template = TEXT_TEMPLATES[name]
        self._tokens = TextTokenizer(tokenizer)
        self._header = self._tokens.encode([self.header], special=True)[0]

    def describe(self) -> dict[str, Any]:
        settings = {"max_length": self.settings.max_length, "truncation": self.preset, "eos": False}
        lead = self._tokens.lead.tolist()
        return {**settings, **self.template.describe(), "alone_header": self.header, "lead_ids": lead}

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample | Problem]:
        prompts = [self._prompt(example) for example in examples]
        texts = [(p, example.response.content) for p, example in zip(prompts, examples, strict=True)]
        whys = [bad_unicode(prompt + response) for prompt, response in texts]
        good = [text for text, why in zip(texts, whys, strict=True) if why is None]
        # Three texts per example, each tokenised with BOS, as the scripts do: prompt, prompt + response, response.
        asked = self._tokens.encode([prompt for prompt, _ in good], special=True)
        given = self._tokens.encode([prompt + response for prompt, response in good], special=True)
        alone = self._tokens.encode([self.header + response for _, response in good], special=True)
        said = (_remarks(example) for example, why in zip(examples, whys, strict=True) if why is None)
        encoded = map(self._encoded, asked, given, alone, said)
        return [next(encoded) if why is None else Problem(why) for why in whys]

    def build(self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()) -> Pass | Problem:
        if kind not in ("given", "alone") or shots:
            what = "passes with shots" if shots or kind == "shown" else f"`{kind}` passes"
            raise SettingsError(f"preset `{self.preset}` has no {what}", hint="leave the preset out")
        assert isinstance(encoded, SeparatelyEncoded), type(encoded)
        return self._build(kind, encoded)

    @abstractmethod
    def _build(self, kind: PassKind, encoded: SeparatelyEncoded) -> Pass | Problem:
        """Return one pass, or the authors' reason to skip the record."""

    def _prompt(self, example: Example) -> str:
        if example.instruction is None:
            return self.template.dialogue(example)
        return self.template.prompt(example.instruction, example.input)

    def _encoded(self, asked: IntArray, given: IntArray, alone: IntArray, said: Remarks) -> EncodedExample:
        start, none = len(asked), given[:0]
        return SeparatelyEncoded(none, given[:start], given[start:], none, alone, self._alone_start(), remarks=said)

    def _alone_start(self) -> int:
        return len(self._header)


def _remarks(example: Example) -> Remarks:
    """Return remarks on what the scripts ignore: tools, earlier turns, and all of a response but its text."""
    before = () if example.instruction is None else example.prompt[:-1]
    unread = replace(example, prompt=before, response=replace(example.response, content=""))
    return make_remarks(parts_of(example), parts_of(unread))


class CherryRenderer(_PaperRenderer):
    """The renderer of IFD's scripts: `### Response:` precedes the response in the `alone` pass too, as context.

    With L the maximal length and il the number of prompt tokens, truncated to L, the passes are the first L tokens of
    prompt + response and the first L - il + 4 tokens of header + response; BOS and the header take 4 tokens in Llama's
    tokenizer. Records are skipped if L - il <= 0, if a pass has no response token, or if il + the response tokens of
    the `alone` pass > L.
    """

    preset = "cherry"
    templates = ("alpaca", "wizardlm")
    header = "### Response:"

    def _build(self, kind: PassKind, encoded: SeparatelyEncoded) -> Pass | Problem:
        limit = self.settings.max_length
        asked = min(len(encoded.prompt), limit)
        given = len(encoded)
        alone = min(len(encoded.alone), limit - asked + 4)  # the scripts' L - il + 4
        left = (min(given, limit) - len(encoded.prompt), alone - encoded.alone_start)
        if asked >= limit or min(left) <= 0:
            return Problem(NO_RESPONSE)
        if asked + left[1] > limit:
            return Problem(f"prompt and response do not fit: {asked + left[1]} > {limit} tokens")
        if kind == "given":
            return _head_pass(limit, encoded.ids, len(encoded.prompt))
        return _head_pass(alone, encoded.alone, encoded.alone_start)


class SuperfilteringRenderer(_PaperRenderer):
    """The renderer of Superfiltering's scripts: the `alone` pass is the response and nothing else.

    With L the maximal length and il the number of prompt tokens, truncated to L, the passes are the first L tokens of
    prompt + response and the first L - il + 1 tokens of the response. BOS is context if the tokenizer writes one.
    Otherwise the first response token is scored in the `given` pass only, and a one-token response in neither.
    """

    preset = "superfiltering"
    templates = ("superfiltering",)

    def _build(self, kind: PassKind, encoded: SeparatelyEncoded) -> Pass | Problem:
        limit = self.settings.max_length
        asked = min(len(encoded.prompt), limit)
        alone = min(len(encoded.alone), limit - asked + 1)  # the scripts' L - il + 1
        # Without BOS the first token has no context and cannot be scored, so the `alone` pass starts at index 1.
        scored = (min(len(encoded), limit) - asked, alone - max(encoded.alone_start, 1))
        if min(scored) <= 0:
            return Problem(NO_RESPONSE)
        if kind == "given":
            return _head_pass(limit, encoded.ids, asked)
        return _head_pass(alone, encoded.alone, encoded.alone_start)

    def _alone_start(self) -> int:
        return len(self._tokens.lead)


def _head_pass(n: int, ids: IntArray, start: int) -> Pass:
    return Pass(ids[:n], start, cut_response=max(0, len(ids) - n))


CPQS_PAPER = "cpqs-paper"


class CpqsRenderer(Renderer):
    """The renderer of CPQS's scripts, which have `given` passes only.

    Args:
        tokenizer: of the model; it adds its special tokens to every text, even if the template wrote them.
        settings: a chat template or a Jinja file, and the maximal length; the rest is fixed.
        context_window: of the model.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: RenderSettings, *, context_window: int | None = None
    ) -> None:
        check_settings(settings, context_window)
        fixed = RenderSettings(settings.template, settings.max_length)
        odd = [key for key, value in asdict(settings).items() if value != getattr(fixed, key)]
        if odd:
            raise SettingsError(
                f"preset `{CPQS_PAPER}` fixes {', '.join(f'`{key}`' for key in odd)} as the authors' code does",
                hint="leave the setting or the preset out",
            )
        template = resolve_template(settings.template, tokenizer)
        if not isinstance(template, ChatTemplate):
            raise SettingsError(
                f"preset `{CPQS_PAPER}` takes a chat template, not `{template.name}`",
                hint="give a Jinja file: `--template chat.jinja`",
            )
        self.settings, self.template, self._tokens = settings, template, TextTokenizer(tokenizer)

    def describe(self) -> dict[str, Any]:
        settings = {"max_length": self.settings.max_length, "truncation": CPQS_PAPER, "eos": True}
        return {**settings, **self.template.describe(), "lead_ids": self._tokens.lead.tolist()}

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample | Problem]:
        texts = [self._texts(example) for example in examples]
        good = [text for text in texts if not isinstance(text, Problem)]
        prompts = self._tokens.encode([prompt for prompt, _ in good], special=True)
        wholes = self._tokens.encode([whole for _, whole in good], special=True)
        none = prompts[0][:0] if prompts else None
        said = [
            self._remarks(one, text[1]) for one, text in zip(examples, texts, strict=True) if isinstance(text, tuple)
        ]
        encoded = (
            EncodedExample(none, whole[: len(prompt)], whole[len(prompt) :], none, remarks=remarks)  # type: ignore[arg-type]
            for prompt, whole, remarks in zip(prompts, wholes, said, strict=True)
        )
        return [text if isinstance(text, Problem) else next(encoded) for text in texts]

    def build(self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()) -> Pass | Problem:
        if kind != "given" or shots:
            what = "passes with shots" if shots or kind == "shown" else f"`{kind}` passes"
            raise SettingsError(f"preset `{CPQS_PAPER}` has no {what}", hint="leave the preset out")
        if not len(encoded.response):
            return Problem(NO_RESPONSE)
        if len(encoded) > self.settings.max_length:
            return Problem(f"prompt and response do not fit: {len(encoded)} > {self.settings.max_length} tokens")
        return Pass(encoded.ids, len(encoded.prompt))

    def _texts(self, example: Example) -> tuple[str, str] | Problem:
        """Return the text of the prompt and of the dialogue, or why there is none."""
        # `generation=True` for the whole dialogue too: the scripts leave a generation prompt after the response.
        if not example.response.content.strip():
            return Problem("empty response")
        before = self._prompt(example)
        try:
            prompt = self.template.text(before, example.tools, generation=True)
            whole = self.template.text([*before, example.response.as_dict()], example.tools, generation=True)
        except TemplateRefusal as refusal:
            return Problem(f"the template refuses the dialogue: {refusal}")
        why = bad_unicode(whole)
        return (prompt, whole) if why is None else Problem(why)

    def _remarks(self, example: Example, whole: str) -> Remarks:
        """Return remarks on what the template leaves out and what the authors' code never passes to it."""
        written = example if example.instruction is None else replace(example, prompt=example.prompt[-1:])
        found = self.template.find_remarks(written, whole)
        unwritten = parts_of(Example("", 0, 0, example.prompt[: -len(written.prompt)], Message("assistant", "")))
        return make_remarks(parts_of(example), frozenset(found.left_out) | unwritten)

    def _prompt(self, example: Example) -> list[Mapping[str, Any]]:
        """Return the prompt as messages; as in the scripts, an instruction is followed by its input even if empty."""
        if example.instruction is None:
            return [message.as_dict() for message in example.prompt]
        return [{"role": "user", "content": f"{example.instruction}\nInput:{example.input or ''}"}]
