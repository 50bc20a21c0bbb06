"""Compare two rankings of the same examples: shared tops with exact intervals, rank correlation with a bootstrap's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tithe.look.agreement import top
from tithe.records import FloatArray
from tithe.run.table import rank_correlation

PERCENTS = (1, 5, 10, 20)
LEVEL = 0.95  # of intervals
DRAWS, FEWEST_DRAWS = 1000, 200  # of the bootstrap
WORK = 20_000_000  # examples drawn at most, over all draws
BLOCK = 1 << 20  # examples drawn at once


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation.

    Args:
        value: from -1 to 1; None if one of the rankings does not vary, or there are fewer than two examples.
        low: lower end of its 95 % interval, by a bootstrap over examples; None if there are too few to tell.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TopOverlap:
    """How much of one top is in the other.

    Args:
        percent: size of the tops, of the examples with both scores.
        size: examples in each top.
        shared: examples in both.
        low: lower end of the exact 95 % interval of the share, from 0 to 1.
        high: upper end.
        chance: share of two rankings that have nothing to do with each other.
        chance_low: lower end of the 95 % range of that.
        chance_high: upper end.
        p: probability that chance shares as many.
        tied: whether equal scores lie on both sides of the edge of a top; the first ones in the data set are in it.
    """

    percent: int
    size: int
    shared: int
    low: float
    high: float
    chance: float
    chance_low: float
    chance_high: float
    p: float
    tied: bool

    @property
    def share(self) -> float:
        """Shared examples as a share of the top."""
        return self.shared / self.size


def top_size(percent: int, examples: int) -> int:
    """Return the examples of a top as `tithe select` counts them: rounded down, but at least one."""
    return max(1, examples * percent // 100)


def top_overlaps(a: FloatArray, b: FloatArray, percents: Sequence[int] = PERCENTS) -> list[TopOverlap]:
    """Compare the tops of two rankings of the same examples.

    The interval is Clopper and Pearson's: it asks how often an example of one top is in the other, and each example of
    the top is one trial. Chance is hypergeometric: a random top of that size.

    Args:
        a: (examples,) scores without NaN.
        b: (examples,) scores without NaN, in the same order.
        percents: sizes of the tops.
    """
    from scipy.stats import binomtest, hypergeom

    found, count = [], len(a)
    for percent in percents if count else ():
        size = top_size(percent, count)
        one, other = top(a, size), top(b, size)
        shared = len(np.intersect1d(one, other))
        interval = binomtest(shared, size).proportion_ci(LEVEL, method="exact")
        chance = hypergeom(count, size, size)
        least, most = (float(chance.ppf(q)) / size for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        tied = tied_at_edge(a, size) or tied_at_edge(b, size)
        low, high, p = float(interval.low), float(interval.high), float(chance.sf(shared - 1))
        found.append(TopOverlap(percent, size, shared, low, high, size / count, least, most, p, tied))
    return found


def tied_at_edge(values: FloatArray, size: int) -> bool:
    """Tell whether the last one in the top and the first one outside have equal scores."""
    if size >= len(values):
        return False
    ranked = np.partition(-values, [size - 1, size])
    return bool(ranked[size - 1] == ranked[size])


def correlate(a: FloatArray, b: FloatArray, seed: int = 0) -> RankCorrelation:
    """Return the rank correlation of the same examples, with its interval.

    Args:
        a: (examples,) scores without NaN.
        b: (examples,) scores without NaN, in the same order.
        seed: random seed of the bootstrap.
    """
    value = rank_correlation(a, b)
    if value is None:
        return RankCorrelation(None)
    draws = bootstrap(a, b, max(FEWEST_DRAWS, min(DRAWS, WORK // len(a))), seed)
    there = draws[~np.isnan(draws)]
    if len(a) < 4 or len(there) < len(draws) / 2:
        return RankCorrelation(value)
    low, high = np.quantile(there, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return RankCorrelation(value, float(low), float(high))


def bootstrap(a: FloatArray, b: FloatArray, draws: int, seed: int) -> FloatArray:
    """Return Spearman's correlation of resamples; NaN where one ranking does not vary.

    A resample is a weight for each example, the number of times it was drawn, so that nothing is sorted again: the rank
    of a group of equal scores is the weight below it, plus half of its own.
    """
    generator, count = np.random.default_rng(seed), len(a)
    groups = [np.unique(values, return_inverse=True)[1].ravel() for values in (a, b)]
    found = np.full(draws, np.nan)
    block = max(1, BLOCK // count)
    for start in range(0, draws, block):
        here = min(block, draws - start)
        drawn = generator.integers(0, count, (here, count)) + count * np.arange(here)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=here * count).reshape(here, count).astype(np.float64)
        x, y = (weighted_ranks(group, weights) for group in groups)  # (draws here, examples)
        x -= (x * weights).sum(axis=1, keepdims=True) / count
        y -= (y * weights).sum(axis=1, keepdims=True) / count
        spread = np.sqrt((x * x * weights).sum(axis=1) * (y * y * weights).sum(axis=1))
        together = (x * y * weights).sum(axis=1)
        np.divide(together, spread, out=found[start : start + here], where=spread > 0)
    return found


def weighted_ranks(group: npt.NDArray[np.int64], weights: FloatArray) -> FloatArray:
    """Return the mean rank of each example's copies, up to a constant.

    Args:
        group: (examples,) the number of each example's group of equal scores, from the lowest score.
        weights: (draws, examples) how often each example was drawn.
    """
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    each = np.add.reduceat(weights[:, order], starts, axis=1)  # (draws, groups)
    ranks: FloatArray = (np.cumsum(each, axis=1) - each / 2)[:, group]
    return ranks
