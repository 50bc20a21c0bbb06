"""Is one way of choosing data better than another? Differences over items and seeds, with both kinds of chance.

Two trained models differ on an item by chance in two ways: other items would have given other differences, and other
seeds (another draw of the random arm, another order of training) would have given other models. A test that looks at
items alone knows the first only, and calls two models that happen to differ a better and a worse method. Here the
differences `d[s, i]` of seed `s` and item `i` are

    d[s, i] = effect + a[s] + b[i] + e[s, i]

with random `a`, `b` and `e` (two-way, one value per cell), as for readers and cases in diagnostic studies (Obuchowski
and Rockette 1995). The variance of the grand mean is put together from the mean squares: what seeds add, with few
degrees of freedom, and what items add, with many. The critical value is the mean of the two t distributions' critical
values, weighted by the two variances (Cochran and Cox 1957, for two means of unequal variances).

Three seeds may agree by chance, and then seem to add nothing. Where several arms are compared with one, each is
therefore held to scatter at least as much as they do on average (`pooled`). Alone, with three seeds and models that
differ much from seed to seed, this is a t-test of two degrees of freedom, which needs a large effect: that is how
little three seeds say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from tithe.records import FloatArray

Squares = tuple[float, float, float]
ODD = 4.0  # an arm that scatters so many times as much as all on average is not like them


@dataclass(frozen=True)
class Spread:
    """Where the differences come from; variances in squared units of the metric.

    Args:
        seeds: how many.
        items: how many.
        of_seeds: variance of `a`: what another seed changes on all items alike.
        of_items: variance of `b`: on which items the two ways differ, whatever the seed.
        of_cells: variance of `e`: the rest.
        times: degrees of freedom of `of_seeds`, as a multiple of those of one arm.
    """

    seeds: int
    items: int
    of_seeds: float
    of_items: float
    of_cells: float
    times: float = 1.0

    def variance(self, seeds: int | None = None, items: int | None = None) -> float:
        """Of the mean difference, with so many seeds and items."""
        s, n = seeds or self.seeds, items or self.items
        return self.of_seeds / s + self.of_items / n + self.of_cells / (s * n)


@dataclass(frozen=True)
class MeanDifference:
    """The mean difference and what is known of it.

    Args:
        effect: mean over seeds and items, in the metric's unit.
        error: standard error.
        of_seeds: share of its square that the seeds add.
        p: two-sided, of no difference.
        low: of the interval.
        high: of the interval.
        level: of the interval.
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


def mean_difference(differences: FloatArray, level: float = 0.95) -> MeanDifference:
    """Test and interval of the mean of `differences`.

    Args:
        differences: (seeds, items), at least 2 x 2, finite.
        level: of the interval.
    """
    seeds, items = differences.shape
    assert seeds > 1 and items > 1 and np.isfinite(differences).all()
    squares = mean_squares(differences)
    return from_squares(float(differences.mean()), squares, (seeds, items), level)


def from_squares(
    effect: float, squares: Squares, shape: tuple[int, int], level: float = 0.95, times: float = 1.0
) -> MeanDifference:
    """The same from the mean squares of seeds, items and cells.

    Args:
        effect: mean difference.
        squares: as `mean_squares` gives them.
        shape: seeds and items.
        level: of the interval.
        times: degrees of freedom of the seeds' square, as a multiple of `seeds - 1`.
    """
    (of_seed, of_item, of_cell), (seeds, items) = squares, shape
    # An estimate below what items (or seeds) alone would give comes of chance in the other two: it is not believed.
    total = max(of_seed + of_item - of_cell, of_seed, of_item)
    error = float(np.sqrt(total / (seeds * items)))
    parts = (max(0.0, (of_seed - of_cell) / items), max(0.0, (of_item - of_cell) / seeds), of_cell)
    spread = Spread(seeds, items, *parts, times=times)
    if error == 0:  # every cell the same, and no scatter to compare it with: the sign test over items is left
        p = 1.0 if effect == 0 else 0.5 ** (items - 1)
        return MeanDifference(effect, 0.0, 0.0, p, effect, effect, level, spread, squares)
    share, freedom = (total - of_item) / total, times * (seeds - 1)
    p = tail(abs(effect) / error, share, freedom, items)
    reach = critical(1 - level, share, freedom, items) * error
    return MeanDifference(effect, error, share, p, effect - reach, effect + reach, level, spread, squares)


def pooled(found: Sequence[MeanDifference]) -> list[MeanDifference]:
    """Arms that are compared with one and the same: none is held to scatter less over seeds than all on average.

    The average of K mean squares that share the other arm's runs has more degrees of freedom than one of them, and
    fewer than K times as many: with other runs that scatter r times as much as an arm's,
    (1 + r)^2 K / ((1 + r)^2 + (K - 1) r^2) times, from the (co)variances of sample variances of normal values.
    r is taken as 2: a random arm is drawn anew for each seed.

    Args:
        found: all of the same numbers of seeds; of the same level.
    """
    if len(found) < 2:
        return list(found)
    average = float(np.mean([one.squares[0] / one.spread.items for one in found]))  # variance of seeds' means
    k, r = len(found), 2.0
    times = (1 + r) ** 2 * k / ((1 + r) ** 2 + (k - 1) * r**2)
    steadied = []
    for one in found:
        own, of_item, of_cell = one.squares
        least = average * one.spread.items
        squares = (max(own, least), of_item, of_cell)
        more = 1.0 if own > ODD * least else times
        steadied.append(from_squares(one.effect, squares, (one.spread.seeds, one.spread.items), one.level, more))
    return steadied


def critical(alpha: float, share: float, freedom: float, items: int) -> float:
    """Two-sided critical value for one share of the variance; see `critical_values`."""
    return float(critical_values(alpha, np.array([share]), freedom, items)[0])


def critical_values(alpha: float, shares: FloatArray, freedom: float, items: int) -> FloatArray:
    """Two-sided critical values: the mean of two t distributions', weighted by what seeds and items add.

    Args:
        alpha: level.
        shares: (values,) of the variance, that seeds add.
        freedom: degrees of freedom of that.
        items: how many.
    """
    of_seeds, of_items = special.stdtrit([freedom, items - 1], 1 - alpha / 2)
    return np.asarray(shares * of_seeds + (1 - shares) * of_items)


def tail(value: float, share: float, freedom: float, items: int) -> float:
    """The level at which `value` is the critical value, by bisection of its logarithm; at least 1e-300."""
    low, high = -690.0, 0.0  # of the level
    if value <= 0:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        quantiles = special.stdtrit([freedom, items - 1], math.exp(middle) / 2)  # lower tails: exact where tiny
        if -(share * quantiles[0] + (1 - share) * quantiles[1]) > value:
            low = middle
        else:
            high = middle
    return math.exp(high)


def mean_squares(differences: FloatArray) -> tuple[float, float, float]:
    """Of seeds, of items, and the rest: (n * var of seed means, S * var of item means, residual)."""
    seeds, items = differences.shape
    by_seed, by_item = differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_item[None, :] + differences.mean()
    of_rest = float((rest**2).sum() / ((seeds - 1) * (items - 1)))
    return items * float(by_seed.var(ddof=1)), seeds * float(by_item.var(ddof=1)), of_rest


WANTED = 0.8  # the usual power
MOST_SEEDS, MOST_ITEMS = 1000, 10_000_000
STEPS = (np.arange(400) + 0.5) / 400  # of a distribution function


def power(effect: float, spread: Spread, alpha: float, seeds: int | None = None, items: int | None = None) -> float:
    """Chance that the two-sided test of `mean_difference` calls an effect of this size by its sign.

    The mean difference is normal. Of what the test estimates, the mean square of items is taken as known, and that of
    seeds follows a chi-square distribution, over which the chance is averaged (quantiles at equal steps).

    Args:
        effect: true mean difference, in the metric's unit.
        spread: components of variance.
        alpha: level of the test, two-sided.
        seeds: how many; those of `spread` by default.
        items: how many; those of `spread` by default.
    """
    s, n = seeds or spread.seeds, items or spread.items
    variance = spread.variance(s, n)
    if variance == 0:
        return 1.0 if effect else alpha / 2
    freedom = spread.times * (s - 1)
    of_seed = (n * spread.of_seeds + spread.of_cells) * special.chdtri(freedom, 1 - STEPS) / freedom
    of_item = s * spread.of_items + spread.of_cells
    total = np.maximum(np.maximum(of_seed + of_item - spread.of_cells, of_item), of_seed)
    limits = critical_values(alpha, (total - of_item) / total, freedom, n)
    errors = np.sqrt(total / (s * n))
    return float(special.ndtr((abs(effect) - limits * errors) / math.sqrt(variance)).mean())


def detectable(spread: Spread, alpha: float, wanted: float = WANTED) -> float:
    """Smallest effect seen with the wanted power, in the metric's unit."""
    error = math.sqrt(spread.variance())
    if error == 0:
        return 0.0
    top = error
    while power(top, spread, alpha) < wanted:
        top *= 2
    found = optimize.brentq(lambda effect: power(effect, spread, alpha) - wanted, 0, top, rtol=1e-6)
    return float(found)


def items_needed(effect: float, spread: Spread, alpha: float, wanted: float = WANTED) -> int | None:
    """Fewest items to see this effect with the same seeds; None where no number of items is enough."""
    return fewest(lambda n: power(effect, spread, alpha, items=n) >= wanted, MOST_ITEMS)


def seeds_needed(effect: float, spread: Spread, alpha: float, wanted: float = WANTED) -> int | None:
    """Fewest seeds to see this effect with the same items; None where no number of seeds is enough."""
    return fewest(lambda s: power(effect, spread, alpha, seeds=s) >= wanted, MOST_SEEDS)


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """Smallest number from 2 on that is enough; every larger one is, too."""
    if not enough(most):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
