"""Is one way of choosing data better than another? Differences over items and seeds, with both kinds of chance.

Two trained models differ on an item by chance in two ways: other items would have given other differences, and other
seeds (another draw of the random arm, another order of training) would have given other models. A test that looks at
items alone knows the first only, and calls two models that happen to differ a better and a worse method. Here the
differences `d[s, i]` of seed `s` and item `i` are

    d[s, i] = effect + a[s] + b[i] + e[s, i]

with random `a`, `b` and `e` (two-way, one value per cell). The variance of the grand mean is put together from the
mean squares, and the degrees of freedom by Satterthwaite (1946, Biometrics Bulletin 2, 110-114); the same is done for
readers and cases in diagnostic studies (Obuchowski and Rockette 1995). With three seeds and models that differ much
from seed to seed this is a t-test of two degrees of freedom, which needs a large effect: that is how little three
seeds say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from tithe.records import FloatArray


@dataclass(frozen=True)
class Spread:
    """Where the differences come from; variances in squared units of the metric.

    Args:
        seeds: how many.
        items: how many.
        of_seeds: variance of `a`: what another seed changes on all items alike.
        of_items: variance of `b`: on which items the two ways differ, whatever the seed.
        of_cells: variance of `e`: the rest.
    """

    seeds: int
    items: int
    of_seeds: float
    of_items: float
    of_cells: float

    def variance(self, seeds: int | None = None, items: int | None = None) -> float:
        """Of the mean difference, with so many seeds and items."""
        s, n = seeds or self.seeds, items or self.items
        return self.of_seeds / s + self.of_items / n + self.of_cells / (s * n)

    def freedom(self, seeds: int | None = None, items: int | None = None) -> float:
        """Degrees of freedom to expect of the test, with so many seeds and items."""
        s, n = seeds or self.seeds, items or self.items
        squares = (n * self.of_seeds + self.of_cells, s * self.of_items + self.of_cells, self.of_cells)
        return satterthwaite(*squares, s, n)


@dataclass(frozen=True)
class MeanDifference:
    """The mean difference and what is known of it.

    Args:
        effect: mean over seeds and items, in the metric's unit.
        error: standard error.
        freedom: degrees of freedom of the t distribution.
        p: two-sided, of no difference.
        low: of the interval.
        high: of the interval.
        level: of the interval.
        spread: components of variance.
    """

    effect: float
    error: float
    freedom: float
    p: float
    low: float
    high: float
    level: float
    spread: Spread


def mean_difference(differences: FloatArray, level: float = 0.95) -> MeanDifference:
    """Test and interval of the mean of `differences`.

    Args:
        differences: (seeds, items), at least 2 x 2, finite.
        level: of the interval.
    """
    seeds, items = differences.shape
    assert seeds > 1 and items > 1 and np.isfinite(differences).all()
    effect = float(differences.mean())
    of_seed, of_item, of_cell = mean_squares(differences)
    # An estimate below what items (or seeds) alone would give comes of chance in the other two: it is not believed.
    total = max(of_seed + of_item - of_cell, of_seed, of_item)
    freedom = satterthwaite(of_seed, of_item, of_cell, seeds, items)
    error = float(np.sqrt(total / (seeds * items)))
    spread = Spread(
        seeds,
        items,
        of_seeds=max(0.0, (of_seed - of_cell) / items),
        of_items=max(0.0, (of_item - of_cell) / seeds),
        of_cells=of_cell,
    )
    if error == 0:  # every cell the same, and no scatter to compare it with: the sign test over items is left
        p = 1.0 if effect == 0 else 0.5 ** (items - 1)
        return MeanDifference(effect, 0.0, freedom, p, effect, effect, level, spread)
    p = float(2 * stats.t.sf(abs(effect) / error, freedom))
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return MeanDifference(effect, error, freedom, p, effect - reach, effect + reach, level, spread)


def mean_squares(differences: FloatArray) -> tuple[float, float, float]:
    """Of seeds, of items, and the rest: (n * var of seed means, S * var of item means, residual)."""
    seeds, items = differences.shape
    by_seed, by_item = differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_item[None, :] + differences.mean()
    of_rest = float((rest**2).sum() / ((seeds - 1) * (items - 1)))
    return items * float(by_seed.var(ddof=1)), seeds * float(by_item.var(ddof=1)), of_rest


def satterthwaite(of_seed: float, of_item: float, of_cell: float, seeds: int, items: int) -> float:
    """Degrees of freedom of `of_seed + of_item - of_cell`; between the fewer of the two kinds and both together."""
    parts = (of_seed**2 / (seeds - 1), of_item**2 / (items - 1), of_cell**2 / ((seeds - 1) * (items - 1)))
    total = max(of_seed + of_item - of_cell, of_seed, of_item)
    if sum(parts) == 0:
        return float(min(seeds, items) - 1)
    return float(np.clip(total**2 / sum(parts), min(seeds, items) - 1, seeds * items - 1))
