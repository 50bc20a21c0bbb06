import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.errors import SettingsError
from tithe.plugins import SELECTORS, build_selector, names
from tithe.records import Scores
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Band, Bottom, RandomOrder, Stratified, Top
from tithe.testing import check_selector

THREE = np.random.default_rng(0).integers(0, 3, 1000).astype(float)


def scores_of(values, **columns):
    values = np.asarray(values, dtype=float)
    problems = {int(i): "no response token left" for i in np.flatnonzero(np.isnan(values))}
    ids = [f"e{i:04d}" for i in range(len(values))]
    return Scores(ids, values, problems, {name: np.array(column, dtype=object) for name, column in columns.items()})


def rows(selection):
    return [int(id_[1:]) for id_ in selection.kept]


def slow_best(values, count, sign):
    """One by one: the best that is not taken yet, of equal ones the first."""
    taken = []
    for _ in range(min(count, sum(value == value for value in values))):
        best = None
        for i, value in enumerate(values):
            if i in taken or value != value:
                continue
            if best is None or sign * value > sign * values[best]:
                best = i
        taken.append(best)
    return sorted(taken)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*names(SELECTORS), "top(ties=last)", "band(low=0, high=1)", "random(seed=3)"])
def test_contract(spec):
    check_selector(build_selector("stratified(by=source)" if spec == "stratified" else spec))


@pytest.mark.parametrize(
    "settings", ["inner=bottom", "inner=random", "share=equal", "inner=random, share=equal, seed=9"]
)
def test_contract_stratified(settings):
    check_selector(build_selector(f"stratified(by=source, {settings})"))


@pytest.mark.parametrize(("selector", "order"), [(Top(), [2.0, 1.0, 0.0]), (Bottom(), [0.0, 1.0, 2.0])])
def test_ties_keep_input_order(selector, order):
    expected = [i for level in order for i in range(1000) if THREE[i] == level]
    for count in (1, 100, 340, 700, 1000):
        assert rows(selector.select(scores_of(THREE), Budget.parse(count))) == sorted(expected[:count])


def test_ties_last_is_the_authors_order():
    """They sort ascending by (score, index) and take the end."""
    expected = sorted(range(1000), key=lambda i: (THREE[i], i))
    for count in (1, 100, 340, 700):
        assert rows(Top(ties="last").select(scores_of(THREE), Budget.parse(count))) == sorted(expected[-count:])


@given(
    st.lists(st.sampled_from([-1.5, 0.0, -0.0, 1.0, 2.0, 1e300, float("inf"), float("nan")]), min_size=1, max_size=12)
)
def test_top_and_bottom_equal_one_by_one(values):
    for count in (1, 3, 12):
        assert rows(Top().select(scores_of(values), Budget.parse(count))) == slow_best(values, count, 1)
        assert rows(Bottom().select(scores_of(values), Budget.parse(count))) == slow_best(values, count, -1)


def test_reasons_can_be_counted():
    scores = scores_of([1, 2, np.nan, 4, 5, np.nan, 7, 8])
    assert Top().select(scores, Budget.parse(2)).reasons() == {"below the budget": 4, "no response token left": 2}
    assert Bottom().select(scores, Budget.parse(2)).reasons() == {"above the budget": 4, "no response token left": 2}
    assert RandomOrder().select(scores, Budget.parse(2)).reasons() == {"not drawn": 4, "no response token left": 2}
    assert Band(low=0.4, high=1.0).select(scores, Budget.parse(2)).reasons() == {
        "outside the band": 2,
        "below the budget": 2,
        "no response token left": 2,
    }


def test_the_selection_says_what_chose():
    assert Band(0.1, 0.5).select(scores_of([1]), Budget.parse(1)).by == "band(low=0.1, high=0.5)"
    assert Bottom().select(scores_of([1]), Budget.parse(1)).by == "bottom"
    assert str(build_selector(str(Stratified(by="a, b")))) == str(Stratified(by="a, b"))


def test_band_is_best_first_inside():
    scores = scores_of(np.arange(101))  # value == its own percentile
    assert rows(Band().select(scores, Budget.parse(3))) == [73, 74, 75]
    assert rows(Band(0.25, 0.75).select(scores, Budget.parse(1.0))) == list(range(25, 76))
    assert rows(Band(0, 1).select(scores, Budget.parse(1.0))) == list(range(101))


def test_band_counts_of_valid_scores():
    scores = scores_of([np.nan] * 50 + list(range(101)))
    assert rows(Band(0.25, 0.75).select(scores, Budget.parse(1000))) == [50 + i for i in range(25, 76)]


def test_band_keeps_ties_at_its_edges_together():
    assert rows(Band(0.5, 0.6).select(scores_of([0, 1, 1, 1, 1, 1, 2]), Budget.parse(9))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 11, 31, 100])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.25, 0.75), (0.0, 0.0), (1.0, 1.0), (0.29, 0.57)])
def test_band_equals_numpy_quantiles(n, low, high):
    values = np.random.default_rng(n).normal(size=n)
    edges = np.quantile(values, [low, high])
    slack = 1e-12  # numpy's interpolation rounds; ours does not interpolate
    expected = [i for i in range(n) if edges[0] - slack <= values[i] <= edges[1] + slack]
    assert rows(Band(low, high).select(scores_of(values), Budget.parse(1000))) == expected


def test_band_edges_are_exact():
    """0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in floats."""
    assert rows(Band(0.07, 0.29).select(scores_of(np.arange(101)), Budget.parse(1000))) == list(range(7, 30))


def test_band_bears_infinite_scores():
    scores = scores_of([-np.inf, -np.inf, 1, 2, np.inf, np.inf])
    assert rows(Band(0.3, 0.7).select(scores, Budget.parse(9))) == [2, 3]


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5), (25, 75)])
def test_band_refuses_what_is_no_quantile(low, high):
    with pytest.raises(SettingsError, match="0 <= low <= high <= 1"):
        Band(low, high)


def test_random_depends_on_seed_and_id_only():
    scores = scores_of(np.random.default_rng(5).normal(size=500))
    first = RandomOrder(seed=1).select(scores, Budget.parse(50))
    other = Scores(scores.ids[::-1], np.zeros(500))
    assert set(RandomOrder(seed=1).select(other, Budget.parse(50)).kept) == set(first.kept)
    assert set(RandomOrder(seed=2).select(scores, Budget.parse(50)).kept) != set(first.kept)
    random.seed(3)
    assert RandomOrder(seed=1).select(scores, Budget.parse(50)).kept == first.kept


def test_random_draws_nest_and_survive_new_examples():
    ids = [f"id-{i}" for i in range(300)]
    small, large = (RandomOrder().select(Scores(ids, np.zeros(300)), Budget.parse(k)).kept for k in (20, 60))
    assert set(small) < set(large)
    grown = RandomOrder().select(Scores([*ids, "new"], np.zeros(301)), Budget.parse(60)).kept
    assert len(set(large) - set(grown)) <= 1


def test_random_is_even():
    """Every id has the same chance: 200 seeds, 20 of 100 each, so 40 times per id, +- 4.5 standard deviations."""
    scores = scores_of(np.zeros(100))
    counts = np.zeros(100)
    for seed in range(200):
        counts[rows(RandomOrder(seed=seed).select(scores, Budget.parse(20)))] += 1
    assert abs(counts - 40).max() < 4.5 * np.sqrt(200 * 0.2 * 0.8)


def test_random_bears_ids_that_are_no_utf8():
    assert RandomOrder().select(Scores(["\ud800", "b"], np.zeros(2)), Budget.parse(2)).kept == ["\ud800", "b"]


def test_settings_are_checked():
    for make in (lambda: Top(ties="x"), lambda: Stratified("a", inner="x"), lambda: Stratified("a", share="x")):
        with pytest.raises(SettingsError, match="not `x`"):
            make()
