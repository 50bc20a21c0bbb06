"""Facility location: the few examples that best represent all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tithe.errors import SettingsError
from tithe.neighbours.coverage import facility_location
from tithe.records import FloatArray, Scores, Selection
from tithe.selectors.base import COVERED, Diverse, scored
from tithe.selectors.budget import Budget

MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class FacilityLocation(Diverse):
    """Keeps the examples that best represent all: each example should have a similar one that is kept.

    Paper:    Nemhauser, Wolsey and Fisher 1978, An analysis of approximations for maximizing submodular set functions
              (greedy reaches 63 % of the best); Minoux 1978, Accelerated greedy algorithms (lazy evaluation)
    Formula:  greedy for f(S) = sum_i max_{j in S} max(0, cos(i, j)) + weight * sum_{j in S} q_j, where q_j is the share
              of the other scored examples whose score is lower than j's
    Cost:     examples x examples x dim, once or a few times; memory grows with the examples alone

    A negative cosine counts as 0: an opposite example covers nothing. The result equals that of naive greedy, ties in
    input order. Dense regions get more than with `kcenter`, and outliers come late.

    Args:
        weight: how much the score counts, 0 for not at all: the score of the best-scored example adds as much as
            covering this many examples whole.
    """

    name: ClassVar[str] = "facility-location"
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= MOST_WEIGHT:
            raise SettingsError(f"`weight` is 0 to {MOST_WEIGHT:,.0f}, not {self.weight}")

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Spend the budget greedily."""
        return self.settle(scores, budget.spend(scores, self._picks(scores)), COVERED)

    def _picks(self, scores: Scores) -> Iterator[int]:
        there = scored(scores)
        bonus = self.weight * share_below(scores.values[there])
        return (int(there[row]) for row in facility_location(self.vectors(scores, there), bonus))


def share_below(values: FloatArray) -> FloatArray:
    """Return the share of the other values that are lower, 0 to 1: independent of the score's unit, ties are equal."""
    return np.searchsorted(np.sort(values), values, side="left") / max(1, len(values) - 1)
