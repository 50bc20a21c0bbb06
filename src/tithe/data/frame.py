"""What stands around prompt and response: the lead, the end of a turn, the way from one dialogue to the next."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.data.rendered import Rendered, Turns
from tithe.data.templates import Template
from tithe.data.tokens import Tokens
from tithe.errors import SettingsError
from tithe.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_IDS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Joint:
    """How a dialogue's prompt is joined by ids to a dialogue before it.

    Args:
        skipped: ids at the beginning of a prompt that a further dialogue does not have: a default system message.
        wall: the special token that has to follow them.
        between: ids between the response before and that token.
    """

    skipped: IntArray
    wall: int
    between: IntArray

    def fits(self, prompt: IntArray) -> bool:
        """Whether the prompt has the template's usual opening."""
        at = len(self.skipped)
        return starts(prompt, self.skipped) and len(prompt) > at and int(prompt[at]) == self.wall


class Frame:
    """The constant ids of a tokenizer, a template and the two settings `bos` and `eos`.

    Attributes:
        end: EOS, where it is scored and the template does not write it.
        joint: how a dialogue goes on after another; None where it has to be tokenised as one text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, template: Template, *, bos: str, eos: bool
    ) -> None:
        self._tokens = tokens
        self._bos = bos
        self._template_leads = template.writes_markers
        self._eos = eos
        self._bos_text = str(tokenizer.bos_token or "") if template.writes_markers else ""
        turns = template.turns
        self.opening = turns.opening
        # the end of the turn is in the response already where it is scored
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
        """The lead of a sequence and the prompt without it: a BOS that the text wrote itself is not doubled."""
        found = next((lead for lead in self._leads if starts(prompt, lead)), NO_IDS)
        lead = self._lead(found)
        if len(lead) or self._template_leads:
            prompt = prompt[len(found) :]
        return lead, prompt

    def after(self, text: str) -> IntArray:
        """Return the ids of what stands after a response that is an earlier turn: the template's tail."""
        marker = text.rstrip()
        if text not in self._tails:
            self._tails[text] = (self.ids(marker), self.ids(text[len(marker) :]))
        end, rest = self._tails[text]
        return rest if self._eos else np.concatenate([end, rest])

    def ends(self, text: Rendered) -> bool:
        """Whether the response's own text ends with what ends a response: EOS, or the template's marker."""
        response, marker = text.response.rstrip(), text.tail.strip()
        return bool((self._eos_text and response.endswith(self._eos_text)) or (marker and response.endswith(marker)))

    def goes_on(self, before: Rendered, prompt: str) -> str:
        """Return a prompt's text as it stands behind another dialogue, with what stands between the two."""
        if self.between is not None and prompt.startswith(self.opening):
            return self.between + prompt[len(self.opening) :]
        tail = before.tail[len(before.tail.rstrip()) :] if self._eos else before.tail
        return tail + self.without_lead(prompt)

    def ids(self, text: str) -> IntArray:
        """A constant text as it is in the middle of another."""
        return self._tokens.encode_after(["\n"], [text])[0] if text else NO_IDS

    def _opens_turns(self, turns: Turns) -> bool:
        """Whether the template writes BOS before later turns, too, as SmolLM2's `<|im_start|>`."""
        if not self._bos_text or turns.between is None:
            return False
        return self._bos_text in turns.between.removeprefix(turns.tail.rstrip())

    def _find_joint(self, turns: Turns) -> Joint | None:
        """Find where a further dialogue can be joined by ids to what stands before it.

        Special tokens are walls: what stands before one is tokenised as if nothing came after it. Without a wall at
        each place where ids are joined, the text as a whole would have other tokens there.
        """
        if self.between is None or turns.system_opening is None:
            return None
        shared = self._from_first_wall(common_end(self.opening, self.between))
        openings = [self.without_lead(text) for text in (self.opening, turns.system_opening)]
        ends = [] if self._eos and self._ends_with_wall(turns.tail) else [self.between, turns.tail]
        if not shared or not all(map(self._wall_at_start, [*openings, *ends])):
            return None
        skipped = self.split(self._tokens.encode([self.opening.removesuffix(shared)])[0])[1]
        wall = self._tokens.walls[self._wall_at_start(shared)]
        return Joint(skipped, wall, self._tokens.encode([self.between.removesuffix(shared)])[0])

    def without_lead(self, text: str) -> str:
        """Return a prompt's text as it stands behind another dialogue: BOS stands once, unless it opens turns."""
        return text if self.bos_opens_turns else text.removeprefix(self._bos_text)

    def _wall_at_start(self, text: str) -> str:
        return max((wall for wall in self._tokens.walls if text.startswith(wall)), key=len, default="")

    def _ends_with_wall(self, text: str) -> bool:
        return any(text.rstrip().endswith(wall) for wall in self._tokens.walls)

    def _from_first_wall(self, text: str) -> str:
        places = [text.index(wall) for wall in self._tokens.walls if wall in text]
        return text[min(places) :] if places else ""

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
        if self._bos == "auto" and self.bos_opens_turns:
            bos_ids = NO_IDS  # it is the marker of a turn, and what the tokenizer writes by itself is the only lead
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


def common_end(a: str, b: str) -> str:
    """Return the longest text that both end with."""
    agree = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False))
    return "".join(one for one, _ in agree)[::-1]
