"""Facility location: the few that best stand for all."""

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
    """Keeps the examples that best stand for all: each example should have a kept one that is like it.

    Paper:    Nemhauser, Wolsey and Fisher 1978, An analysis of approximations for maximizing submodular set functions
              (greedy reaches 63 % of the best); Minoux 1978, Accelerated greedy algorithms (lazy evaluation)
    Formula:  greedy for f(S) = sum_i max_{j in S} max(0, cos(i, j)) + weight * sum_{j in S} q_j, where q_j is the share
              of the other scored examples whose score is lower than j's
    Cost:     examples x examples x dim, once or a few times; memory grows with the examples alone

    A negative cosine counts as 0: what is unlike an example does not stand for it, however little. Equal to the naive
    greedy, ties to the first of the input. Dense regions get more than under `kcenter`, and outliers come late.

    Args:
        weight: what the score counts, 0 is nothing: the best-scored example adds this many examples, each covered
            whole, by its score alone.
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
    """Of each value, the share of the others that are lower, 0 to 1: without the scores' unit, and equal for equals."""
    return np.searchsorted(np.sort(values), values, side="left") / max(1, len(values) - 1)
