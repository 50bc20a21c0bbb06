"""Look up templates by name, and define the plain-text ones; chat templates are in `chat.py`.

A template renders an example and splits its text into prompt, response and tail.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from tithe.data.chat import ChatTemplate
from tithe.data.rendered import NO_REMARKS, Remarks, Rendered, TurnTexts
from tithe.errors import TemplateError, did_you_mean
from tithe.foreign import foreign, read_small
from tithe.records import Example, Message, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_NAMES = {
    "auto": "`chat` where the tokenizer has a chat template, else `plain`",
    "chat": "the tokenizer's own chat template",
    "plain": "the texts of the dialogue in order, blank lines between",
    "alpaca": "Stanford Alpaca's, as in the IFD paper: a preamble, `### Instruction:`, `### Input:`, `### Response:`",
    "wizardlm": "the IFD paper's for WizardLM: the instruction, `Input:`, `### Response:`",
    "superfiltering": "the Superfiltering paper's: instruction and input, each on a line of its own",
}
NO_SCHEMAS = Remarks(("tool schema",), ("tool schema",))  # plain-text templates write no function schemas
JINJA_ENDINGS = (".jinja", ".jinja2", ".j2")
MOST_TEMPLATE = 1 << 20  # bytes; the longest templates of models have tens of thousands


@dataclass(frozen=True)
class TextTemplate:
    """A template without roles: a text with slots for an instruction and an optional input.

    A dialogue is written turn after turn, each with its response, separated by blank lines. System and tool messages
    become part of the next user message's instruction.

    Args:
        name: as in `TEMPLATE_NAMES`.
        bare: the prompt without an input, with the slot `{instruction}`.
        with_input: the prompt with an input, with the slots `{instruction}` and `{input}`.
        anchor: the prompt's constant end.
    """

    name: str
    bare: str
    with_input: str
    anchor: str
    # A second dialogue follows after a blank line.
    turns: ClassVar[TurnTexts] = TurnTexts(opening="", between="\n\n")
    writes_markers: ClassVar[bool] = False

    @property
    def source_hash(self) -> str:
        return _hash(f"{self.bare}\0{self.with_input}")

    def describe(self) -> dict[str, str]:
        return {"template": self.name, "template_hash": self.source_hash}

    def prompt(self, instruction: str, given_input: str | None) -> str:
        """Return the prompt's text; an input that is None or empty counts as absent."""
        if not given_input:
            return self.bare.format(instruction=instruction)
        return self.with_input.format(instruction=instruction, input=given_input)

    def render(self, example: Example) -> Rendered | Problem:
        response = message_text(example.response)
        if not response.strip():
            return Problem("empty response")
        return Rendered(self.dialogue(example), response, "", self.anchor, NO_SCHEMAS if example.tools else NO_REMARKS)

    def dialogue(self, example: Example) -> str:
        """Return the prompt of a dialogue of any length, turn after turn."""
        done: list[str] = []
        pending: list[str] = []
        for message in example.prompt:
            if message.role == "assistant":
                done.append(self.prompt("\n\n".join(pending), None) + message_text(message))
                pending = []
            else:
                pending.append(message_text(message))
        given_input = None
        # The last user message is instruction and input joined; here the template joins them in its own way.
        if example.instruction is not None:
            pending[-1:] = [example.instruction]
            given_input = example.input
        return "\n\n".join([*done, self.prompt("\n\n".join(pending), given_input)])


Template: TypeAlias = TextTemplate | ChatTemplate

_RESPONSE = "\n\n### Response:"
_TASK = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}"
TEXT_TEMPLATES = {
    template.name: template
    for template in (
        TextTemplate(
            "alpaca",
            f"{_TASK}. {_WRITE}{_RESPONSE}",
            f"{_TASK}, paired with an input that provides further context. "
            f"{_WRITE}\n\n### Input:\n{{input}}{_RESPONSE}",
            anchor="### Response:",
        ),
        TextTemplate(
            "wizardlm",
            f"{{instruction}}{_RESPONSE}",
            f"{{instruction}}\nInput:{{input}}{_RESPONSE}",
            anchor="### Response:",
        ),
        TextTemplate("superfiltering", "{instruction}\n", "{instruction}\n{input}\n", anchor="\n"),
        TextTemplate("plain", "{instruction}\n\n", "{instruction}\n\n{input}\n\n", anchor="\n\n"),
    )
}


def message_text(message: Message) -> str:
    """Return a message as plain text: reasoning in `<think>` tags, the content, a JSON line per tool call."""
    parts = [f"<think>\n{message.reasoning}\n</think>"] if message.reasoning else []
    parts += [message.content] if message.content or not (parts or message.tool_calls) else []
    parts += [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.tool_calls]
    return "\n\n".join(parts)


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def resolve_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the template of that name, or the one in that file.

    Raises:
        TemplateError: there is no such template, or it cannot be read or cannot render even a simple dialogue.
    """
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name in TEXT_TEMPLATES:
        return TEXT_TEMPLATES[name]
    source = _own_source(tokenizer) if name == "chat" else _file_source(name)
    return ChatTemplate(name, source, tokenizer.special_tokens_map)


def _own_source(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several templates by name
        if "default" not in own:
            raise TemplateError(
                f"the tokenizer has no chat template named `default`, only {', '.join(f'`{key}`' for key in own)}",
                hint="write the one you want to a file and give its path: `--template chat.jinja`",
            )
        own = own["default"]
    if not own:
        raise TemplateError(
            f"template `chat` was asked for, but the tokenizer `{tokenizer.name_or_path}` has no chat template",
            hint="take `--template plain` or `alpaca`, or give a Jinja file: `--template chat.jinja`",
        )
    return str(own)


def _file_source(name: str) -> str:
    if not name.endswith(JINJA_ENDINGS):
        raise TemplateError(
            f"unknown template `{name}`",
            hint=f"{did_you_mean(name, TEMPLATE_NAMES)} (or the path of a .jinja file)",
        )
    if not Path(name).exists():
        raise TemplateError(f"template file `{name}` not found", hint="check the path")
    raw = read_small(Path(name), TemplateError, MOST_TEMPLATE)
    with foreign(TemplateError, f"template file `{name}` cannot be read"):
        return raw.decode("utf-8-sig")
