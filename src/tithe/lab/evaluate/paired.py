"""Test whether one way of choosing data is better than another, with both items and seeds as sources of chance.

Two trained models differ on an item by chance in two ways: other items would have given other differences, and other
seeds (another draw of the random arm, another order of training) would have given other models. A test over items
alone accounts only for the first, and takes two models that happen to differ for a better and a worse method. Here the
difference `d[s, i]` of seed `s` and item `i` is modelled as

    d[s, i] = effect + a[s] + b[i] + e[s, i]

with random `a`, `b` and `e` (two-way, one value per cell), as for readers and cases in diagnostic studies (Obuchowski
and Rockette 1995). The variance of the grand mean is computed from the mean squares: the part of the seeds has few
degrees of freedom, that of the items many. The critical value is the mean of the two t distributions' critical values,
weighted by the two variances (Cochran and Cox 1957, for two means of unequal variances).

Three seeds may agree by chance and then seem to add no variance. When several arms are compared with the same
reference, no arm's between-seed variance is therefore taken to be below the pooled one (`pooled`). A single arm with
three seeds and models that differ much between seeds gets a t-test with two degrees of freedom, which only finds large
effects: three seeds say no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from tithe.records import FloatArray

LEVEL = 0.95  # of intervals
Squares = tuple[float, float, float]  # mean squares of seeds, items and cells
ODD = 4.0  # an arm whose between-seed variance is this many times the pooled one is not pooled with the others


@dataclass(frozen=True)
class Spread:
    """Components of variance of the differences, in squared units of the metric.

    Args:
        seeds: number of seeds.
        items: number of items.
        of_seeds: variance of `a`: what another seed changes on all items alike.
        of_items: variance of `b`: how much the effect differs between items, whatever the seed.
        of_cells: variance of `e`: the residual.
        times: degrees of freedom of `of_seeds`, as a multiple of those of one arm.
    """

    seeds: int
    items: int
    of_seeds: float
    of_items: float
    of_cells: float
    times: float = 1.0

    def variance(self, seeds: int | None = None, items: int | None = None) -> float:
        """Return the variance of the mean difference with this many seeds and items."""
        s, n = seeds or self.seeds, items or self.items
        return self.of_seeds / s + self.of_items / n + self.of_cells / (s * n)


@dataclass(frozen=True)
class MeanDifference:
    """Mean difference with its test and interval.

    Args:
        effect: mean over seeds and items, in the metric's unit.
        error: standard error.
        of_seeds: share of the squared error that comes from the seeds.
        p: two-sided p of no difference.
        low: lower end of the interval.
        high: upper end of the interval.
        level: confidence level of the interval.
        spread: components of variance.
        squares: mean squares of seeds, items and cells.
    """

    effect: float
    error: float
    of_seeds: float
    p: float
    low: float
    high: float
    level: float
    spread: Spread
    squares: Squares


def mean_difference(differences: FloatArray) -> MeanDifference:
    """Test the mean of `differences` and compute its interval.

    Args:
        differences: (seeds, items), at least 2 x 2, finite.
    """
    seeds, items = differences.shape
    assert seeds > 1 and items > 1 and np.isfinite(differences).all()
    return from_squares(float(differences.mean()), mean_squares(differences), (seeds, items))


def from_squares(effect: float, squares: Squares, shape: tuple[int, int], times: float = 1.0) -> MeanDifference:
    """Test a mean difference and compute its interval from the mean squares of seeds, items and cells.

    Args:
        effect: mean difference.
        squares: result of `mean_squares`.
        shape: number of seeds and of items.
        times: degrees of freedom of the seeds' mean square, as a multiple of `seeds - 1`.
    """
    (of_seed, of_item, of_cell), (seeds, items) = squares, shape
    # Var(mean) * S * n = MS_seed + MS_item - MS_cell. Where that is below MS_seed or MS_item alone, a component was
    # estimated as negative by chance, and the larger one is taken.
    total = max(of_seed + of_item - of_cell, of_seed, of_item)
    error = float(np.sqrt(total / (seeds * items)))
    parts = (max(0.0, (of_seed - of_cell) / items), max(0.0, (of_item - of_cell) / seeds), of_cell)
    spread = Spread(seeds, items, *parts, times=times)
    if error == 0:  # all differences are equal: only a sign test over items is possible
        p = 1.0 if effect == 0 else 0.5 ** (items - 1)
        return MeanDifference(effect, 0.0, 0.0, p, effect, effect, LEVEL, spread, squares)
    # `total` is MS_item plus what the seeds add, so the seeds' share of the variance is the rest.
    share, freedom = (total - of_item) / total, times * (seeds - 1)
    p = tail(abs(effect) / error, share, freedom, items)
    reach = critical(1 - LEVEL, share, freedom, items) * error
    return MeanDifference(effect, error, share, p, effect - reach, effect + reach, LEVEL, spread, squares)


def pooled(found: Sequence[MeanDifference]) -> list[MeanDifference]:
    """Pool the between-seed variance of arms compared with the same reference on the same items.

    No arm's between-seed variance is taken to be below the average of all arms. The average of K mean squares that
    share the reference's runs has more degrees of freedom than one of them, but fewer than K times as many: if the
    reference's between-seed variance is r times that of an arm, (1 + r)^2 K / ((1 + r)^2 + (K - 1) r^2) times as many,
    from the (co)variances of sample variances of normal values. r is taken as 2, as a random arm is drawn anew for
    each seed.

    Args:
        found: differences with the same number of seeds.
    """
    if len(found) < 2:
        return list(found)
    average = float(np.mean([one.squares[0] / one.spread.items for one in found]))  # variance of the seeds' means
    k, r = len(found), 2.0
    times = (1 + r) ** 2 * k / ((1 + r) ** 2 + (k - 1) * r**2)
    result = []
    for one in found:
        own, of_item, of_cell = one.squares
        least = average * one.spread.items
        squares = (max(own, least), of_item, of_cell)
        more = 1.0 if own > ODD * least else times  # an outlier keeps its own variance and its own degrees of freedom
        result.append(from_squares(one.effect, squares, (one.spread.seeds, one.spread.items), more))
    return result


def critical(alpha: float, share: float, freedom: float, items: int) -> float:
    """Return the two-sided critical value for one share of the variance; see `critical_values`."""
    return float(critical_values(alpha, np.array([share]), freedom, items)[0])


def critical_values(alpha: float, shares: FloatArray, freedom: float, items: int) -> FloatArray:
    """Return two-sided critical values: the mean of two t distributions', weighted by the variances of seeds and items.

    Args:
        alpha: level of the test.
        shares: (values,) share of the variance that comes from the seeds.
        freedom: degrees of freedom of the seeds' variance.
        items: number of items.
    """
    of_seeds, of_items = special.stdtrit([freedom, items - 1], 1 - alpha / 2)
    return np.asarray(shares * of_seeds + (1 - shares) * of_items)


def tail(value: float, share: float, freedom: float, items: int) -> float:
    """Return p: the level at which `value` is the critical value, by bisection of its logarithm; at least 1e-300."""
    low, high = -690.0, 0.0  # of the level's logarithm
    if value <= 0:
        return 1.0
    for _ in range(60):  # 690 / 2**60 is below float64's resolution
        middle = (low + high) / 2
        quantiles = special.stdtrit([freedom, items - 1], math.exp(middle) / 2)  # lower tails: exact where tiny
        if -(share * quantiles[0] + (1 - share) * quantiles[1]) > value:
            low = middle
        else:
            high = middle
    return math.exp(high)


def mean_squares(differences: FloatArray) -> Squares:
    """Return the mean squares of seeds, items and cells: n * var(seed means), S * var(item means), residual."""
    seeds, items = differences.shape
    by_seed, by_item = differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_item[None, :] + differences.mean()
    of_rest = float((rest**2).sum() / ((seeds - 1) * (items - 1)))
    return items * float(by_seed.var(ddof=1)), seeds * float(by_item.var(ddof=1)), of_rest


WANTED = 0.8  # power, the usual choice
MOST_SEEDS, MOST_ITEMS = 1000, 10_000_000
STEPS = (np.arange(400) + 0.5) / 400  # probabilities at which a distribution is averaged


def power(effect: float, spread: Spread, alpha: float, seeds: int | None = None, items: int | None = None) -> float:
    """Return the probability that the test of `mean_difference` finds an effect of this size, with the right sign.

    The mean difference is taken as normal, the mean square of items as known, and that of seeds as chi-square
    distributed; the probability is averaged over that distribution (quantiles at equal steps).

    Args:
        effect: true mean difference, in the metric's unit.
        spread: components of variance.
        alpha: level of the two-sided test.
        seeds: number of seeds; that of `spread` by default.
        items: number of items; that of `spread` by default.
    """
    s, n = seeds or spread.seeds, items or spread.items
    variance = spread.variance(s, n)
    if variance == 0:
        return 1.0 if effect else alpha / 2
    freedom = spread.times * (s - 1)
    # Mean squares as the test would see them: of_seed at the quantiles of its distribution (400,), of_item as expected.
    of_seed = (n * spread.of_seeds + spread.of_cells) * special.chdtri(freedom, 1 - STEPS) / freedom
    of_item = s * spread.of_items + spread.of_cells
    total = np.maximum(np.maximum(of_seed + of_item - spread.of_cells, of_item), of_seed)
    limits = critical_values(alpha, (total - of_item) / total, freedom, n)
    errors = np.sqrt(total / (s * n))
    return float(special.ndtr((abs(effect) - limits * errors) / math.sqrt(variance)).mean())


def detectable(spread: Spread, alpha: float, wanted: float = WANTED) -> float:
    """Return the smallest effect that is found with the wanted power, in the metric's unit."""
    error = math.sqrt(spread.variance())
    if error == 0:
        return 0.0
    top = error  # an upper bound for the root, found by doubling
    while power(top, spread, alpha) < wanted:
        top *= 2
    return float(optimize.brentq(lambda effect: power(effect, spread, alpha) - wanted, 0, top, rtol=1e-6))


def items_needed(effect: float, spread: Spread, alpha: float) -> int | None:
    """Return how many items it takes to find this effect with the same seeds; None if no number is enough."""
    return fewest(lambda n: power(effect, spread, alpha, items=n) >= WANTED, MOST_ITEMS)


def seeds_needed(effect: float, spread: Spread, alpha: float) -> int | None:
    """Return how many seeds it takes to find this effect on the same items; None if no number is enough."""
    return fewest(lambda s: power(effect, spread, alpha, seeds=s) >= WANTED, MOST_SEEDS)


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest number from 2 on that is enough, given that every larger one is enough too."""
    if not enough(most):
        return None
    low, high = 1, 2  # after this loop `low` is not enough and `high` is
    while not enough(high):
        low, high = high, min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
