"""The best of several responses to one prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tithe.errors import SettingsError
from tithe.records import Scores
from tithe.selectors.budget import Indices
from tithe.selectors.rank import Ranked, Top

PROMPT = "prompt"


@dataclass(frozen=True)
class PerPrompt(Ranked):
    """Keeps the highest scores, but only the best of several responses to one prompt.

    Paper:    Zhang et al. 2025, The best instruction-tuning data are those that fit, arXiv 2502.04194 (GRAPE)
    Formula:  the n responses with the highest score for each prompt; the budget is spent on these by rank
    Cost:     sorting

    A prompt is everything before the response; two prompts are the same if they are equal to the letter.

    Args:
        n: most responses to keep for a prompt, at least 1.
    """

    name: ClassVar[str] = "per-prompt"
    reads: ClassVar[tuple[str, ...]] = (PROMPT,)
    outside: ClassVar[str] = "another response to its prompt is better"
    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"`n` must be at least 1, not {self.n}")

    def order(self, scores: Scores) -> Indices:
        """Return those among the best of their prompt, highest first."""
        if PROMPT not in scores.columns:
            hint = "one text or hash per example, equal for equal prompts"
            raise SettingsError(f"`{self.name}` needs the column `{PROMPT}`", hint=hint)
        best, prompts = Top().order(scores), scores.columns[PROMPT].tolist()
        before: Counter[str] = Counter()  # responses seen so far, by prompt; the best come first
        among = np.zeros(len(best), dtype=bool)
        for place, index in enumerate(best.tolist()):
            among[place] = before[prompts[index]] < self.n
            before[prompts[index]] += 1
        return best[among]
