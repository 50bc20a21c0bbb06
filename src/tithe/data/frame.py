"""What stands around prompt and response: the lead, the end of a turn, the way from one dialogue to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.data.templates import Template
from tithe.data.tokens import Tokens
from tithe.errors import SettingsError
from tithe.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_IDS = np.empty(0, dtype=np.int32)


class Frame:
    """The constant ids of a tokenizer, a template and the two settings `bos` and `eos`.

    Attributes:
        end: EOS, where it is scored and the template does not write it.
        opening: what the template writes before the first user's words, without the lead.
        between: what it writes there after a response; None where each dialogue has its own opening.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, template: Template, *, bos: str, eos: bool
    ) -> None:
        self._tokens = tokens
        self._bos = bos
        self._template_leads = template.writes_markers
        self._leads = self._possible_leads(tokenizer.bos_token_id)
        self._tails: dict[str, tuple[IntArray, IntArray]] = {}
        self.end = self._end(tokenizer.eos_token_id) if eos and not template.writes_markers else NO_IDS
        turns = template.turns
        self.opening = self.split(tokens.encode([turns.opening])[0])[1]
        self.between: IntArray | None = None
        if turns.between is not None:  # the end of the turn is in the response already where it is scored
            self.between = self.ids(turns.between.removeprefix(turns.tail.rstrip() if eos else ""))

    def describe(self) -> dict[str, Any]:
        return {"lead_ids": "what the template writes" if self._template_leads else self._leads[0].tolist()}

    def split(self, prompt: IntArray) -> tuple[IntArray, IntArray]:
        """The lead of a sequence and the prompt without it: a BOS that the text wrote itself is not doubled."""
        found = next((lead for lead in self._leads if starts(prompt, lead)), NO_IDS)
        lead = self._lead(found)
        if len(lead) or self._template_leads:
            prompt = prompt[len(found) :]
        return lead, prompt

    def tail(self, text: str) -> tuple[IntArray, IntArray]:
        """The ids of the end-of-turn marker, and of the white space after it."""
        if text not in self._tails:
            marker = text.rstrip()
            self._tails[text] = (self.ids(marker), self.ids(text[len(marker) :]))
        return self._tails[text]

    def ids(self, text: str) -> IntArray:
        """A constant text as it is in the middle of another."""
        return self._tokens.encode_after(["\n"], [text])[0] if text else NO_IDS

    def _lead(self, found: IntArray) -> IntArray:
        if self._bos == "never":
            return NO_IDS
        if self._template_leads and (self._bos == "auto" or len(found)):
            return found  # the template writes BOS itself or wants none: so do transformers and TRL
        return self._leads[0]

    def _possible_leads(self, bos: int | None) -> list[IntArray]:
        """What a sequence can begin with, the tokenizer's own way first; at least one entry, perhaps empty."""
        own, bos_ids = self._tokens.lead, NO_IDS if bos is None else np.array([bos], dtype=np.int32)
        if self._bos == "auto" and not self._template_leads:
            return [own]
        leads = [lead for lead in (own, bos_ids) if len(lead)]
        if self._bos == "always" and not leads:
            raise SettingsError("bos `always` was asked for, but the tokenizer has no BOS token", hint="take `auto`")
        return leads or [NO_IDS]

    def _end(self, eos: int | None) -> IntArray:
        if eos is None:
            raise SettingsError("eos was asked for, but the tokenizer has no EOS token", hint="leave `--eos` out")
        return np.array([eos], dtype=np.int32)


def starts(ids: IntArray, head: IntArray) -> bool:
    """Whether the ids begin with those."""
    return bool(np.array_equal(ids[: len(head)], head))
