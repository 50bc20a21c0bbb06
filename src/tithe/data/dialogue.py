"""The rendering of the CPQS paper's scripts: two texts of a chat template, each tokenised as a whole.

What they do was found by running them. Prompt and dialogue are rendered apart, both with the beginning of the next
reply, and the response is what the dialogue's ids have beyond the number of the prompt's: it ends with what the
template writes after a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tithe.data.chat import ChatTemplate, Refusal, remarks
from tithe.data.omissions import parts_of
from tithe.data.render import Encoded, Renderer, RenderSettings, check_settings
from tithe.data.rendered import Remarks
from tithe.data.templates import resolve_template
from tithe.data.tokens import Tokens, bad_unicode
from tithe.errors import SettingsError
from tithe.records import Example, Message, Pass, PassKind, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRESET = "cpqs-paper"


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
                f"preset `{PRESET}` fixes {', '.join(f'`{key}`' for key in odd)} as the authors' code does",
                hint="leave the setting or the preset out",
            )
        template = resolve_template(settings.template, tokenizer)
        if not isinstance(template, ChatTemplate):
            raise SettingsError(
                f"preset `{PRESET}` takes a chat template, not `{template.name}`",
                hint="give a Jinja file: `--template chat.jinja`",
            )
        self.settings, self.template, self._tokens = settings, template, Tokens(tokenizer)

    def describe(self) -> dict[str, Any]:
        settings = {"max_length": self.settings.max_length, "truncation": PRESET, "eos": True}
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
            raise SettingsError(f"preset `{PRESET}` has no {what}", hint="leave the preset out")
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
