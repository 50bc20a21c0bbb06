"""What an experiment of this size could have seen, and how large one would have to be."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import optimize, stats

from tithe.evaluate.paired import Spread, critical

WANTED = 0.8  # the usual power
MOST_SEEDS, MOST_ITEMS = 1000, 10_000_000


def power(effect: float, spread: Spread, alpha: float, seeds: int | None = None, items: int | None = None) -> float:
    """Chance that the two-sided test of `mean_difference` calls an effect of this size by its sign.

    The statistic is taken as a noncentral t with Satterthwaite's degrees of freedom, the critical value as it will be
    on average.

    Args:
        effect: true mean difference, in the metric's unit.
        spread: components of variance.
        alpha: level of the test, two-sided.
        seeds: how many; those of `spread` by default.
        items: how many; those of `spread` by default.
    """
    variance = spread.variance(seeds, items)
    if variance == 0:
        return 1.0 if effect else alpha / 2
    shift = abs(effect) / math.sqrt(variance)
    s, n = seeds or spread.seeds, items or spread.items
    limit = critical(alpha, spread.parts(s, n)[0] / variance, spread.times * (s - 1), n)
    freedom = spread.freedom(s, n)
    if shift > 30 + 3 * limit:  # where the noncentral distribution underflows
        return 1.0
    return float(stats.nct.sf(limit, freedom, shift))


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
