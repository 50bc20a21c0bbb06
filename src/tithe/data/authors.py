"""Renderers that tokenise as the papers' own scripts do, oddities included, to compare numbers with theirs.

What they do was found by running them. It differs from `TemplateRenderer` in that each pass tokenises its own text, so
that the two responses may differ by a token, and in how texts that are too long are cut.

CPQS: prompt and dialogue are rendered apart, both with the beginning of the next reply, and the response is what the
dialogue's ids have beyond the number of the prompt's: it ends with what the template writes after a response. This was
found by running the scripts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tithe.data.chat import ChatTemplate, Refusal, remarks
from tithe.data.render import Encoded, Renderer, RenderSettings, check_settings
from tithe.data.rendered import Remarks, parts_of
from tithe.data.templates import TEXT_TEMPLATES, resolve_template
from tithe.data.tokens import Tokens, bad_unicode
from tithe.errors import SettingsError, did_you_mean
from tithe.records import Example, IntArray, Message, Pass, PassKind, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_RESPONSE = "no response token left"


@dataclass(frozen=True, slots=True)
class TwoTexts(Encoded):
    """Both passes of one example, each tokenised from its own text with BOS.

    Here `prompt` and `response` are the ids of prompt + response cut at `len(encode(prompt))`, which need not be
    where the response's own first token begins.

    Args:
        alone: ids of the text of the `alone` pass.
        alone_start: index of the first scored token there.
    """

    alone: IntArray
    alone_start: int


class _AuthorsRenderer(Renderer):
    """What both papers' scripts share: prompt + response in one text, whose prompt is counted by itself."""

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
        fixed = RenderSettings(settings.template, settings.max_length)
        if settings != fixed:
            odd = [key for key, value in asdict(settings).items() if value != getattr(fixed, key)]
            raise SettingsError(
                f"preset `{self.preset}` fixes {', '.join(f'`{key}`' for key in odd)} as the authors' code does",
                hint="leave the setting or the preset out",
            )
        self.settings = settings
        self.template = TEXT_TEMPLATES[name]
        self._tokens = Tokens(tokenizer)
        self._header = self._tokens.encode([self.header], special=True)[0]

    def describe(self) -> dict[str, Any]:
        settings = {"max_length": self.settings.max_length, "truncation": self.preset, "eos": False}
        lead = self._tokens.lead.tolist()
        return {**settings, **self.template.describe(), "alone_header": self.header, "lead_ids": lead}

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Problem]:
        prompts = [self._prompt(example) for example in examples]
        texts = [(p, example.response.content) for p, example in zip(prompts, examples, strict=True)]
        whys = [bad_unicode(prompt + response) for prompt, response in texts]
        good = [text for text, why in zip(texts, whys, strict=True) if why is None]
        asked = self._tokens.encode([prompt for prompt, _ in good], special=True)
        given = self._tokens.encode([prompt + response for prompt, response in good], special=True)
        alone = self._tokens.encode([self.header + response for _, response in good], special=True)
        said = (_remarks(example) for example, why in zip(examples, whys, strict=True) if why is None)
        encoded = map(self._encoded, asked, given, alone, said)
        return [next(encoded) if why is None else Problem(why) for why in whys]

    def build(self, kind: PassKind, encoded: Encoded, shots: Sequence[Encoded] = ()) -> Pass | Problem:
        if kind not in ("given", "alone") or shots:
            what = "passes with shots" if shots or kind == "shown" else f"`{kind}` passes"
            raise SettingsError(f"preset `{self.preset}` has no {what}", hint="leave the preset out")
        assert isinstance(encoded, TwoTexts), type(encoded)
        return self._build(kind, encoded)

    @abstractmethod
    def _build(self, kind: PassKind, encoded: TwoTexts) -> Pass | Problem:
        """One pass, or the authors' reason to skip the record."""

    def _prompt(self, example: Example) -> str:
        if example.instruction is None:
            return self.template.dialogue(example)
        return self.template.prompt(example.instruction, example.input)

    def _encoded(self, asked: IntArray, given: IntArray, alone: IntArray, said: Remarks) -> Encoded:
        start, none = len(asked), given[:0]
        return TwoTexts(none, given[:start], given[start:], none, alone, self._alone_start(), remarks=said)

    def _alone_start(self) -> int:
        return len(self._header)


def _remarks(example: Example) -> Remarks:
    """Return what the scripts do not read: schemas, what precedes an instruction, of a response all but its text."""
    before = () if example.instruction is None else example.prompt[:-1]
    unread = replace(example, prompt=before, response=replace(example.response, content=""))
    return remarks(parts_of(example), parts_of(unread))


class CherryRenderer(_AuthorsRenderer):
    """IFD's own: `### Response:` stands before the response in the `alone` pass, too; header and BOS are context.

    With L the maximal length and il the tokens of the prompt cut to L, the passes are the first L tokens of
    prompt + response and the first L - il + 4 of header + response: 4 is what BOS and the header take in Llama's
    tokenizer. Skipped: L - il <= 0, no response token in a pass, il + response tokens of the `alone` pass > L.
    """

    preset = "cherry"
    templates = ("alpaca", "wizardlm")
    header = "### Response:"

    def _build(self, kind: PassKind, encoded: TwoTexts) -> Pass | Problem:
        limit = self.settings.max_length
        asked = min(len(encoded.prompt), limit)
        given = len(encoded)
        alone = min(len(encoded.alone), limit - asked + 4)
        left = (min(given, limit) - len(encoded.prompt), alone - encoded.alone_start)
        if asked >= limit or min(left) <= 0:
            return Problem(NO_RESPONSE)
        if asked + left[1] > limit:
            return Problem(f"prompt and response do not fit: {asked + left[1]} > {limit} tokens")
        if kind == "given":
            return _first(limit, encoded.ids, len(encoded.prompt))
        return _first(alone, encoded.alone, encoded.alone_start)


class SuperfilteringRenderer(_AuthorsRenderer):
    """Superfiltering's own: the `alone` pass is the response and nothing else.

    With L the maximal length and il the tokens of the prompt cut to L, the passes are the first L tokens of
    prompt + response and the first L - il + 1 of the response. BOS is context where the tokenizer writes one.
    Without one the first response token is scored in the `given` pass only, and a response of one token in neither.
    """

    preset = "superfiltering"
    templates = ("superfiltering",)

    def _build(self, kind: PassKind, encoded: TwoTexts) -> Pass | Problem:
        limit = self.settings.max_length
        asked = min(len(encoded.prompt), limit)
        alone = min(len(encoded.alone), limit - asked + 1)
        scored = (min(len(encoded), limit) - asked, alone - max(encoded.alone_start, 1))
        if min(scored) <= 0:
            return Problem(NO_RESPONSE)
        if kind == "given":
            return _first(limit, encoded.ids, asked)
        return _first(alone, encoded.alone, encoded.alone_start)

    def _alone_start(self) -> int:
        return len(self._tokens.lead)


def _first(n: int, ids: IntArray, start: int) -> Pass:
    return Pass(ids[:n], start, cut_response=max(0, len(ids) - n))


CPQS_PAPER = "cpqs-paper"


class CpqsRenderer(Renderer):
    """Given passes alone.

    Args:
        tokenizer: of the model; what it adds to every text by itself it adds here.
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
        self.settings, self.template, self._tokens = settings, template, Tokens(tokenizer)

    def describe(self) -> dict[str, Any]:
        settings = {"max_length": self.settings.max_length, "truncation": CPQS_PAPER, "eos": True}
        return {**settings, **self.template.describe(), "lead_ids": self._tokens.lead.tolist()}

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Problem]:
        texts = [self._texts(example) for example in examples]
        good = [text for text in texts if not isinstance(text, Problem)]
        prompts = self._tokens.encode([prompt for prompt, _ in good], special=True)
        wholes = self._tokens.encode([whole for _, whole in good], special=True)
        none = prompts[0][:0] if prompts else None
        said = [
            self._remarks(one, text[1]) for one, text in zip(examples, texts, strict=True) if isinstance(text, tuple)
        ]
        encoded = (
            Encoded(none, whole[: len(prompt)], whole[len(prompt) :], none, remarks=remarks)  # type: ignore[arg-type]
            for prompt, whole, remarks in zip(prompts, wholes, said, strict=True)
        )
        return [text if isinstance(text, Problem) else next(encoded) for text in texts]

    def build(self, kind: PassKind, encoded: Encoded, shots: Sequence[Encoded] = ()) -> Pass | Problem:
        if kind != "given" or shots:
            what = "passes with shots" if shots or kind == "shown" else f"`{kind}` passes"
            raise SettingsError(f"preset `{CPQS_PAPER}` has no {what}", hint="leave the preset out")
        if not len(encoded.response):
            return Problem("no response token left")
        if len(encoded) > self.settings.max_length:
            return Problem(f"prompt and response do not fit: {len(encoded)} > {self.settings.max_length} tokens")
        return Pass(encoded.ids, len(encoded.prompt))

    def _texts(self, example: Example) -> tuple[str, str] | Problem:
        """The prompt's text and the dialogue's, or why there is none."""
        if not example.response.content.strip():
            return Problem("empty response")
        before = self._prompt(example)
        try:
            prompt = self.template.text(before, example.tools, generation=True)
            whole = self.template.text([*before, example.response.as_dict()], example.tools, generation=True)
        except Refusal as refusal:
            return Problem(f"the template refuses the dialogue: {refusal}")
        why = bad_unicode(whole)
        return (prompt, whole) if why is None else Problem(why)

    def _remarks(self, example: Example, whole: str) -> Remarks:
        """Return what the template leaves out, and what the authors' code never gives it."""
        written = example if example.instruction is None else replace(example, prompt=example.prompt[-1:])
        found = self.template.find_remarks(written, whole)
        unwritten = parts_of(Example("", 0, 0, example.prompt[: -len(written.prompt)], Message("assistant", "")))
        return remarks(parts_of(example), frozenset(found.left_out) | unwritten)

    def _prompt(self, example: Example) -> list[Mapping[str, Any]]:
        """As messages; an instruction always has its input after it, be it empty."""
        if example.instruction is None:
            return [message.as_dict() for message in example.prompt]
        return [{"role": "user", "content": f"{example.instruction}\nInput:{example.input or ''}"}]
