"""DEITA's walk down the ranking, which skips what is too similar to something kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tithe.errors import SettingsError
from tithe.neighbours.coverage import unlike
from tithe.records import Scores, Selection
from tithe.selectors.base import Diverse
from tithe.selectors.budget import Budget, Indices
from tithe.selectors.rank import Top


@dataclass(frozen=True)
class Deita(Diverse):
    """Keeps the highest scores, but nothing too similar to something kept already.

    Paper:    Liu et al. 2023, What makes good data for alignment?, arXiv 2312.15685 ("score first, diversity aware")
    Formula:  down the ranking, keep i if max over j in S of cos(i, j) < threshold
    Cost:     examples walked past x kept x dim

    The threshold is a similarity, not a distance: a required cosine distance of 0.9 would drop nearly everything. What
    the walk does not reach is below the budget.

    Args:
        threshold: cosine, above 0 and at most 1, from which two prompts are too similar; equal prompts always are.
    """

    name: ClassVar[str] = "deita"
    like: ClassVar[str] = "too like something kept"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise SettingsError(f"`threshold` is a cosine, above 0 and at most 1, not {self.threshold}")

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Spend the budget down the ranking."""
        skipped: dict[int, str] = {}
        kept = budget.spend(scores, self._walk(scores, Top().order(scores), skipped))
        return self.settle(scores, kept, "below the budget", skipped)

    def _walk(self, scores: Scores, order: Indices, skipped: dict[int, str]) -> Iterator[int]:
        """Yield what is kept, in order, and put what is skipped on the way into `skipped`."""
        vectors = self.vectors(scores, order)
        for index, new in zip(order.tolist(), unlike(vectors, self.threshold), strict=True):
            if new:
                yield index
            else:
                skipped[index] = self.like
