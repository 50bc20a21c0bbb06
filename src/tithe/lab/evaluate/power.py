"""What an experiment of this size could have seen, and how large one would have to be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special

from tithe.lab.evaluate.paired import Spread, critical_values

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
