"""The constant tokens around prompt and response: lead, end of turn, and what joins one dialogue to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.data.chat import common_suffix
from tithe.data.rendered import Rendered, TurnTexts
from tithe.data.templates import Template
from tithe.data.tokens import TextTokenizer
from tithe.errors import SettingsError
from tithe.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_IDS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Joint:
    """The ids by which a dialogue's prompt is joined to an earlier dialogue.

    Args:
        skipped: ids at the beginning of a prompt that a later dialogue omits, e.g. a default system message.
        boundary: the special token that must follow them.
        between: ids between the earlier response and that token.
    """

    skipped: IntArray
    boundary: int
    between: IntArray

    def matches(self, prompt: IntArray) -> bool:
        """Tell whether the prompt has the template's usual opening."""
        at = len(self.skipped)
        return starts_with(prompt, self.skipped) and len(prompt) > at and int(prompt[at]) == self.boundary


class Frame:
    """The constant ids of a tokenizer and template, given the settings `bos` and `eos`.

    Attributes:
        end: EOS, if it is scored and the template does not write it.
        joint: the ids that join dialogues; None if joined dialogues must be tokenised as one text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: TextTokenizer, template: Template, *, bos: str, eos: bool
    ) -> None:
        self._tokens = tokens
        self._bos = bos
        self._template_leads = template.writes_markers
        self._eos = eos
        self._bos_text = str(tokenizer.bos_token or "") if template.writes_markers else ""
        turns = template.turns
        self.opening = turns.opening
        # If the end of the turn is scored, the response already contains it.
        self.between = None if turns.between is None else turns.between.removeprefix(turns.tail.rstrip() if eos else "")
        self.bos_opens_turns = self._opens_turns(turns)
        self._leads = self._possible_leads(tokenizer.bos_token_id)
        self._tails: dict[str, tuple[IntArray, IntArray]] = {}
        self._eos_text = str(tokenizer.eos_token or "")
        self.end = self._end(tokenizer.eos_token_id) if eos and not template.writes_markers else NO_IDS
        self.end_text = self._eos_text if len(self.end) else ""
        self.joint = self._find_joint(turns)

    def describe(self) -> dict[str, Any]:
        return {"lead_ids": "what the template writes" if self._template_leads else self._leads[0].tolist()}

    def split(self, prompt: IntArray) -> tuple[IntArray, IntArray]:
        """Split a sequence's prompt into lead and rest, so that a BOS in the text is not doubled."""
        found = next((lead for lead in self._leads if starts_with(prompt, lead)), NO_IDS)
        lead = self._lead(found)
        if len(lead) or self._template_leads:
            prompt = prompt[len(found) :]
        return lead, prompt

    def tail_ids(self, text: str) -> IntArray:
        """Return the ids of the template's tail after a response that is an earlier turn."""
        # Tokenise marker and white space separately: if the marker is scored, it is already in the response.
        marker = text.rstrip()
        if text not in self._tails:
            self._tails[text] = (self.ids(marker), self.ids(text[len(marker) :]))
        end, rest = self._tails[text]
        return rest if self._eos else np.concatenate([end, rest])

    def has_own_end(self, text: Rendered) -> bool:
        """Tell whether the response's own text ends with EOS or the template's end-of-turn marker."""
        response, marker = text.response.rstrip(), text.tail.strip()
        return bool((self._eos_text and response.endswith(self._eos_text)) or (marker and response.endswith(marker)))

    def continuation(self, before: Rendered, prompt: str) -> str:
        """Return a prompt's text as it follows another dialogue, including the text between the two."""
        # With the usual opening, e.g. a default system message, write what the template writes between turns.
        if self.between is not None and prompt.startswith(self.opening):
            return self.between + prompt[len(self.opening) :]
        tail = before.tail[len(before.tail.rstrip()) :] if self._eos else before.tail
        return tail + self.without_lead(prompt)

    def ids(self, text: str) -> IntArray:
        """Return the ids of a constant text as tokenised in the middle of another."""
        return self._tokens.encode_after(["\n"], [text])[0] if text else NO_IDS

    def _opens_turns(self, turns: TurnTexts) -> bool:
        """Tell whether the template writes BOS before later turns too, like SmolLM2's `<|im_start|>`."""
        if not self._bos_text or turns.between is None:
            return False
        return self._bos_text in turns.between.removeprefix(turns.tail.rstrip())

    def _find_joint(self, turns: TurnTexts) -> Joint | None:
        """Find the ids that join one dialogue to the next; None if ids cannot be joined.

        The text before a boundary token is tokenised as if nothing followed. Without such a token at every join, the
        joined ids would differ from those of the whole text.
        """
        if self.between is None or turns.system_opening is None:
            return None
        shared = self._from_first_boundary(common_suffix(self.opening, self.between))
        openings = [self.without_lead(text) for text in (self.opening, turns.system_opening)]
        ends = [] if self._eos and self._ends_with_boundary(turns.tail) else [self.between, turns.tail]
        if not shared or not all(map(self._boundary_at_start, [*openings, *ends])):
            return None
        skipped = self.split(self._tokens.encode([self.opening.removesuffix(shared)])[0])[1]
        boundary = self._tokens.boundary_tokens[self._boundary_at_start(shared)]
        return Joint(skipped, boundary, self._tokens.encode([self.between.removesuffix(shared)])[0])

    def without_lead(self, text: str) -> str:
        """Return a prompt's text as it follows another dialogue: without BOS, unless BOS opens every turn."""
        return text if self.bos_opens_turns else text.removeprefix(self._bos_text)

    def _boundary_at_start(self, text: str) -> str:
        return max((token for token in self._tokens.boundary_tokens if text.startswith(token)), key=len, default="")

    def _ends_with_boundary(self, text: str) -> bool:
        return any(text.rstrip().endswith(token) for token in self._tokens.boundary_tokens)

    def _from_first_boundary(self, text: str) -> str:
        places = [text.index(token) for token in self._tokens.boundary_tokens if token in text]
        return text[min(places) :] if places else ""

    def _lead(self, found: IntArray) -> IntArray:
        if self._bos == "never":
            return NO_IDS
        if self._template_leads and (self._bos == "auto" or len(found)):
            return found  # as transformers and TRL do: the template decides whether there is a BOS
        return self._leads[0]

    def _possible_leads(self, bos: int | None) -> list[IntArray]:
        """Return the possible leads of a sequence, the tokenizer's own first; at least one entry, perhaps empty."""
        own, bos_ids = self._tokens.lead, NO_IDS if bos is None else np.array([bos], dtype=np.int32)
        if self._bos == "auto" and not self._template_leads:
            return [own]
        if self._bos == "auto" and self.bos_opens_turns:
            bos_ids = NO_IDS  # here BOS is a turn marker, so only the tokenizer's own lead is one
        leads = [lead for lead in (own, bos_ids) if len(lead)]
        if self._bos == "always" and not leads:
            raise SettingsError("bos is `always`, but the tokenizer has no BOS token", hint="take `auto`")
        return leads or [NO_IDS]

    def _end(self, eos: int | None) -> IntArray:
        if eos is None:
            raise SettingsError("eos is set, but the tokenizer has no EOS token", hint="leave `--eos` out")
        return np.array([eos], dtype=np.int32)


def starts_with(ids: IntArray, head: IntArray) -> bool:
    """Tell whether the ids begin with `head`."""
    return bool(np.array_equal(ids[: len(head)], head))
