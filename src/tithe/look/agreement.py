"""Say how far the scorers of a run agree: shared tops and rank correlation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tithe.records import FloatArray
from tithe.run.table import rank_correlation


@dataclass(frozen=True)
class Agreement:
    """How far two scorers agree.

    Args:
        overlap: share of the first one's top that is in the second one's, 0 to 1.
        correlation: Spearman's rank correlation over the examples with both scores; None if one does not vary.
        both: examples with both scores.
    """

    overlap: float
    correlation: float | None
    both: int


def top(values: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Return the places of the highest values, NaN never among them; of equal ones the first."""
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    there = int(np.count_nonzero(~np.isnan(values)))
    return order[: min(count, there)].astype(np.int64)


def agreements(scores: Mapping[str, FloatArray], count: int) -> list[list[Agreement]]:
    """Compare every scorer with every other.

    Args:
        scores: name -> (examples,) scores, NaN for none.
        count: size of the tops.

    Returns:
        A row a scorer, in their order.
    """
    tops = {name: set(top(values, count).tolist()) for name, values in scores.items()}
    return [[agreement(scores, tops, one, other) for other in scores] for one in scores]


def agreement(scores: Mapping[str, FloatArray], tops: Mapping[str, set[int]], one: str, other: str) -> Agreement:
    shared = len(tops[one] & tops[other]) / max(1, len(tops[one]))
    both = int(np.count_nonzero(~(np.isnan(scores[one]) | np.isnan(scores[other]))))
    return Agreement(shared, rank_correlation(scores[one], scores[other]), both)
