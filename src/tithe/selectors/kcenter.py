"""k-centre greedy: always keep next what is least similar to everything kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal

import numpy as np

from tithe.errors import SettingsError
from tithe.neighbours.coverage import farthest_first
from tithe.records import Scores, Selection
from tithe.selectors.base import COVERED, Diverse
from tithe.selectors.budget import Budget, Indices
from tithe.selectors.rank import Top


@dataclass(frozen=True)
class KCenter(Diverse):
    """Keeps what is farthest from everything kept already, so that no example is far from a kept one.

    Paper:    Gonzalez 1985, Clustering to minimize the maximum intercluster distance; Sener and Savarese 2018,
              Active learning for convolutional neural networks: a core-set approach, arXiv 1708.00489
    Formula:  next = argmax over i of min over j in S of d(i, j), d = 1 - cos; at most twice the best radius
    Cost:     examples x kept x dim

    Outliers come first, so use it on a pool that filters or a score have cleaned. The score decides where it starts
    and, through `pool`, what may be kept at all; it has no other influence.

    Args:
        start: with the `best` score, or with the example nearest to the mean of all (`central`).
        pool: share of the scored examples, best first, that can be kept and must be covered: above 0, at most 1.
    """

    name: ClassVar[str] = "kcenter"
    outside: ClassVar[str] = "outside the pool"
    start: Literal["best", "central"] = "best"
    pool: float = 1.0

    def __post_init__(self) -> None:
        if self.start not in ("best", "central"):
            raise SettingsError(f"`start` is `best` or `central`, not `{self.start}`")
        if not 0 < self.pool <= 1:
            raise SettingsError(f"`pool` must be a share above 0 and at most 1, not {self.pool}")

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Spend the budget farthest first."""
        best = Top().order(scores)
        size = ceil(Fraction(str(self.pool)) * len(best))
        kept = budget.spend(scores, self._picks(scores, best[:size]))
        return self.settle(scores, kept, COVERED, dict.fromkeys(best[size:].tolist(), self.outside))

    def _picks(self, scores: Scores, best: Indices) -> Iterator[int]:
        pool = np.sort(best)  # so that ties go to the first in input order
        vectors = self.vectors(scores, pool)
        first = int(np.searchsorted(pool, best[0])) if self.start == "best" and len(best) else None
        return (int(pool[row]) for row in farthest_first(vectors, first))
