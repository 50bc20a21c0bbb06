"""The test over seeds and items: by hand, and by simulation under the null and with a known effect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tithe.lab.evaluate.paired import (
    Spread,
    detectable,
    fewest,
    items_needed,
    mean_difference,
    mean_squares,
    pooled,
    power,
    seeds_needed,
)

# standard deviations of seeds, items and cells: models that differ much, little and not at all from seed to seed
WORLDS = [(0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.2, 1.0, 1.0), (1.0, 1.0, 1.0)]


def drawn(rng, seeds, items, world):
    a, b, e = world
    return rng.normal(0, a, (seeds, 1)) + rng.normal(0, b, (1, items)) + rng.normal(0, e, (seeds, items))


def test_by_hand():
    found = mean_difference(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    # seed means 2 and 4 (variance 2, times 3 items), item means 2, 3, 4 (variance 1, times 2 seeds), nothing left over
    assert mean_squares(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])) == pytest.approx((6.0, 2.0, 0.0))
    assert found.effect == 3 and found.error == pytest.approx(np.sqrt((6 + 2) / 6))
    assert found.of_seeds == pytest.approx(6 / 8)
    # at its own p the statistic is the weighted critical value: one degree of freedom for seeds, two for items
    limits = [stats.t.isf(found.p / 2, freedom) for freedom in (1, 2)]
    assert found.effect / found.error == pytest.approx(6 / 8 * limits[0] + 2 / 8 * limits[1])
    assert found.low < 3 < found.high and found.high - 3 == pytest.approx(3 - found.low)


def test_mean_squares_by_a_slow_twin():
    d = np.random.default_rng(3).normal(size=(4, 7))
    total = sum((d[s, i] - d.mean()) ** 2 for s in range(4) for i in range(7))
    seeds = sum(7 * (d[s].mean() - d.mean()) ** 2 for s in range(4))
    items = sum(4 * (d[:, i].mean() - d.mean()) ** 2 for i in range(7))
    assert mean_squares(d) == pytest.approx((seeds / 3, items / 6, (total - seeds - items) / 18))


def test_models_that_differ_alone_are_a_t_test_over_seeds():
    seeds = np.array([0.3, 0.5, 0.1, 0.4])
    d = np.repeat(seeds[:, None], 50, axis=1) + 1e-9 * np.random.default_rng(0).normal(size=(4, 50))
    assert mean_difference(d).p == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue, rel=1e-4)


def test_seeds_that_agree_are_a_t_test_over_items():
    items = np.random.default_rng(1).normal(0.2, 1, 200)
    d = np.repeat(items[None, :], 3, axis=0) + 1e-9 * np.random.default_rng(2).normal(size=(3, 200))
    assert mean_difference(d).p == pytest.approx(stats.ttest_1samp(items, 0).pvalue, rel=1e-3)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 2 / 2**5)])
def test_all_the_same(value, p):
    found = mean_difference(np.full((3, 5), value))
    assert (found.p, found.low, found.high) == pytest.approx((p, value, value), abs=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_under_the_null_few_say_better(world):
    rng, times = np.random.default_rng(0), 1000
    found = [mean_difference(drawn(rng, 3, 200, world)) for _ in range(times)]
    better = sum(one.p < 0.05 and one.effect > 0 for one in found) / times
    assert better <= 0.05  # nominal 0.025


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_power_is_as_computed(world, seeds):
    rng, times = np.random.default_rng(1), 1000
    spread = Spread(seeds, 200, *(s**2 for s in world))
    effect = 3 * np.sqrt(spread.variance())
    found = [mean_difference(drawn(rng, seeds, 200, world) + effect) for _ in range(times)]
    seen = sum(one.p < 0.05 and one.effect > 0 for one in found) / times
    # the variance is estimated, of three seeds with two degrees of freedom: seven points, five with five seeds
    assert seen == pytest.approx(power(effect, spread, 0.05), abs=0.07 if seeds == 3 else 0.05)


def test_a_test_of_items_alone_would_call_chance_a_method():
    """Why seeds count: models that differ by chance are 'better' or 'worse' most of the time for items alone."""
    rng, wrong, ours = np.random.default_rng(2), 0, 0
    for _ in range(300):
        d = drawn(rng, 3, 500, (0.3, 1.0, 0.5))
        wrong += stats.ttest_1samp(d.mean(0), 0).pvalue < 0.05
        ours += mean_difference(d).p < 0.05
    assert wrong / 300 > 0.5 and ours / 300 < 0.09


def test_arms_that_agree_by_chance_are_held_to_scatter_as_the_others_do():
    rng = np.random.default_rng(6)
    found = [mean_difference(drawn(rng, 3, 100, (0.3, 0.3, 0.5)) + 0.4) for _ in range(6)]
    after = pooled(found)
    seeds = [one.spread.of_seeds + one.spread.of_cells / 100 for one in found]
    assert min(one.spread.of_seeds + one.spread.of_cells / 100 for one in after) == pytest.approx(np.mean(seeds))
    quiet = int(np.argmin(seeds))
    assert after[quiet].error > found[quiet].error and after[quiet].effect == found[quiet].effect
    assert {one.spread.times for one in after} == {9 * 6 / (9 + 5 * 4)} and pooled(found[:1]) == found[:1]


def test_degrees_of_freedom_of_a_pooled_variance():
    """The formula's K = 5 and r = 2 against simulated sample variances: 2 * mean^2 / variance."""
    rng = np.random.default_rng(7)
    other = rng.normal(0, np.sqrt(2), (100_000, 1, 3))
    arms = rng.normal(0, 1, (100_000, 5, 3))
    averages = (arms - other).var(axis=2, ddof=1).mean(1)
    expected = 9 * 5 / (9 + 4 * 4) * 2
    assert 2 * averages.mean() ** 2 / averages.var() == pytest.approx(expected, rel=0.03)


def test_detectable_has_the_wanted_power():
    spread = Spread(3, 500, 0.01, 0.5, 0.5)
    assert power(detectable(spread, 0.05), spread, 0.05) == pytest.approx(0.8, abs=1e-4)
    assert power(detectable(spread, 0.01, wanted=0.5), spread, 0.01) == pytest.approx(0.5, abs=1e-4)


def test_how_much_more_would_be_needed():
    spread = Spread(3, 100, 0.0, 1.0, 1.0)
    n = items_needed(0.1, spread, 0.05)
    assert n is not None
    assert power(0.1, spread, 0.05, items=n) >= 0.8 > power(0.1, spread, 0.05, items=n - 1)
    noisy = Spread(3, 100, 1.0, 1.0, 1.0)
    assert items_needed(0.1, noisy, 0.05) is None  # no number of items helps where models differ so much
    s = seeds_needed(0.5, noisy, 0.05)
    assert s is not None and power(0.5, noisy, 0.05, seeds=s) >= 0.8 > power(0.5, noisy, 0.05, seeds=s - 1)
    assert items_needed(0.0, spread, 0.05) is None and seeds_needed(0.0, spread, 0.05) is None


@pytest.mark.parametrize(("least", "found"), [(2, 2), (3, 3), (17, 17), (100, 100), (101, None)])
def test_fewest(least, found):
    assert fewest(lambda n: n >= least, 100) == found


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.integers(2, 20), st.integers(2, 1000), st.floats(-5, 5))
def test_properties(a, b, e, seeds, items, effect):
    spread = Spread(seeds, items, a, b, e)
    assert 0 <= power(effect, spread, 0.05) <= 1
    assert spread.variance(items=2 * items) <= spread.variance()
