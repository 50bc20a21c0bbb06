"""Areas under the ROC curve of many bootstrap resamples of prompts at once.

A resample of prompts is a weight for each of them: how often it was drawn. The weighted area needs one sort of the
values, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
CHUNK = 1 << 22  # weights held at once


def weighted_aucs(values: Floats, labels: npt.NDArray[Any], weights: Floats) -> Floats:
    """The share of (high, low) pairs in which the high one has the larger value, ties half: (resamples,).

    Args:
        values: (rows,).
        labels: (rows,) 1 for high.
        weights: (resamples, rows).

    Returns:
        NaN where a resample has one tier alone.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])  # of each distinct value
    sorted_weights, high = weights[:, order], labels[order] == 1
    highs = np.add.reduceat(sorted_weights * high, starts, axis=1)  # (resamples, distinct values)
    lows = np.add.reduceat(sorted_weights * ~high, starts, axis=1)
    below = np.cumsum(lows, axis=1) - lows / 2
    pairs = highs.sum(1) * lows.sum(1)
    won = (highs * below).sum(1)
    return np.asarray(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def resampled_aucs(
    values: Mapping[str, Floats], labels: npt.NDArray[Any], groups: npt.NDArray[Any], *, seed: int, resamples: int
) -> dict[str, Floats]:
    """Areas of several values over the same resamples of prompts: (resamples,) each."""
    prompts, of_row = np.unique(groups, return_inverse=True)
    found: dict[str, list[Floats]] = {name: [] for name in values}
    for drawn in draws(len(prompts), len(of_row), seed, resamples):
        weights = drawn[:, of_row].astype(np.float64)
        for name, one in values.items():
            found[name].append(weighted_aucs(one, labels, weights))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def draws(prompts: int, rows: int, seed: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each prompt is drawn, some resamples at a time: (resamples, prompts)."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // rows)
    for begin in range(0, resamples, step):
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(step, resamples - begin))
