"""Comparisons of measured arms: pairing, direction, correction, words."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tithe.errors import MissingExtraError
from tithe.extras import install_hint
from tithe.lab.evaluate.comparison import compare, corrected, holm, item_test, mcnemar, pair_values, sign_flip
from tithe.lab.evaluate.measured import Measured, as_records, as_table, from_files
from tithe.lab.evaluate.paired import mean_difference
from tithe.run.folder import write_table

ITEMS = tuple(f"i{n}" for n in range(60))


def runs(means, *, seed=0, noise=0.5, higher=True, items=ITEMS, groups=()):
    """One measurement per seed; items have a difficulty that all runs share."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(size=len(items))
    return [
        Measured("m", "number", "nats/token", higher, items, hard + mean + noise * rng.normal(size=len(items)), groups)
        for mean in means
    ]


def judged(arm, other):
    (found,) = corrected([compare(arm, other, names=("a", "b"), budget="5%")])
    return found


@pytest.mark.slow
def test_better_and_worse_follow_the_direction():
    high, low = runs([1, 1, 1], seed=1), runs([0, 0, 0], seed=2)
    assert judged(high, low).verdict == "better" and judged(low, high).verdict == "worse"
    high, low = runs([1, 1, 1], seed=1, higher=False), runs([0, 0, 0], seed=2, higher=False)
    found = judged(low, high)
    assert found.verdict == "better" and found.effect == pytest.approx(1, abs=0.3) and found.difference.low > 0


def test_models_that_scatter_are_not_told_apart():
    found = judged(runs([0.9, -0.8, 0.6], seed=1), runs([0, 0, 0], seed=2))
    assert found.verdict == "not distinguishable" and found.detectable > abs(found.effect)
    assert found.seeds_needed is None or found.seeds_needed > 3


def test_pairing_is_by_name_and_what_lacks_is_counted():
    arm, other = runs([0, 0, 0], seed=1), runs([0, 0, 0], seed=2)
    turned = [one.only(one.items[::-1]) for one in other]
    assert judged(arm, turned).effect == pytest.approx(judged(arm, other).effect)
    short = [other[0], other[1].only(ITEMS[5:]), other[2]]
    both = pair_values(arm, short)
    assert both.items == ITEMS[5:] and both.left_out == 5 and both.arm.shape == (3, 55)


def test_groups_are_their_own_items():
    groups = tuple("x" if n % 3 else "y" for n in range(60))
    arm, other = runs([1, 1, 1], seed=1, groups=groups), runs([0, 0, 0], seed=2, groups=groups)
    found = compare(arm, other, names=("a", "b"), budget="5%", group="y")
    assert found.items == 20 and found.tested is None


def test_responses_to_one_prompt_are_one_item():
    """Ten prompts of six responses: by hand a comparison of the ten means."""
    prompts = tuple(f"p{n // 6}" for n in range(60))
    sides = [
        [replace(one, clusters=prompts) for one in runs(means, seed=s)] for means, s in (([1] * 3, 1), ([0] * 3, 2))
    ]
    both = pair_values(*sides)
    assert len(both.items) == 10 and both.arm.shape == (3, 10)
    first = sides[0][0].values
    assert sorted(both.arm[0]) == pytest.approx(sorted(first[6 * n : 6 * n + 6].mean() for n in range(10)))
    assert judged(*sides).items == 10
    short = [[one.only(ITEMS[3:]) for one in side] for side in sides]
    assert min(abs(pair_values(*short).arm[0] - first[3:6].mean())) < 1e-12  # what is there of a prompt


def test_correlated_responses_do_not_make_chance_an_effect():
    """No effect, ten prompts of three responses that go together: by prompt few say so, by response many would."""
    rng, prompts, found = np.random.default_rng(8), tuple(f"p{n // 3}" for n in range(30)), {True: 0, False: 0}
    for _ in range(300):
        sides = []
        for _ in range(2):
            liked = np.repeat(rng.normal(size=10), 3)
            values = [liked + rng.normal(0, 0.5, 30) for _ in range(3)]
            sides.append([Measured("m", "number", "u", True, ITEMS[:30], one, (), prompts) for one in values])
        for clustered in found:
            both = sides if clustered else [[replace(one, clusters=()) for one in side] for side in sides]
            found[clustered] += mean_difference(pair_values(*both).arm - pair_values(*both).other).p < 0.05
    assert found[True] / 300 < 0.08 and found[False] / 300 > 0.12


def test_one_item_and_no_item():
    arm, other = runs([1, 1, 1], items=ITEMS[:1]), runs([0, 0, 0], items=ITEMS[:1])
    one = judged(arm, other)
    assert one.verdict == "no verdict" and one.why == "one item is too few for a test"
    none = judged(arm, runs([0, 0, 0], items=ITEMS[5:6]))
    assert none.verdict == "no verdict" and none.why == "no item has a value in every run"
    assert np.isnan(none.effect)


def test_holm_by_hand():
    # ordered 0.01, 0.02, 0.04: times 3, 2, 1, and never falling
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


@pytest.mark.slow
def test_correction_makes_verdicts_rarer():
    arms = [runs([0.19, 0.2, 0.21], seed=s) for s in range(5)]
    other = runs([0, 0, 0], seed=50)
    together = corrected([compare(arm, other, names=("a", "b"), budget="5%") for arm in arms])
    assert all(one.p_holm >= one.difference.p for one in together)
    assert [one.p_holm for one in together] == pytest.approx(holm([one.difference.p for one in together]))
    assert {one.family for one in together} == {5}


def test_statsmodels_is_missed_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(MissingExtraError) as caught:
        holm([0.5])
    assert install_hint("experiment") in caught.value.hint


def test_mcnemar_by_hand():
    # seven items only the first has right, one only the second: 2 * (C(8,0) + C(8,1)) / 2**8
    d = np.array([1.0] * 7 + [-1.0] + [0.0] * 20)
    assert mcnemar(d) == pytest.approx(2 * 9 / 256)
    assert mcnemar(np.zeros(5)) == 1


def test_sign_flips_by_hand():
    # of 2**4 signs only all plus and all minus give a mean as far from 0
    assert sign_flip(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2 / 16)
    assert sign_flip(np.zeros(4)) == 1


def test_item_test_against_scipy():
    d = np.random.default_rng(5).normal(0.3, 1, (3, 150))
    found = item_test(d, right=False)
    assert found.p_sign_flip == pytest.approx(stats.ttest_1samp(d.mean(0), 0).pvalue, abs=0.01)
    interval = stats.ttest_1samp(d.mean(0), 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.03)
    assert found.dz == pytest.approx(d.mean() / d.mean(0).std(ddof=1)) and found.p_mcnemar is None
    right = item_test(np.sign(d), right=True)
    assert right.p_mcnemar is not None and len(right.p_mcnemar) == 3


def test_items_all_the_same():
    found = item_test(np.full((3, 10), 0.5), right=False)
    assert (found.low, found.high, found.dz) == (0.5, 0.5, None)


def test_measured_comes_back_from_its_files(tmp_path):
    first = runs([1], groups=tuple("xy"[n % 2] for n in range(60)))[0]
    first = replace(first, clusters=tuple(str(n // 3) for n in range(60)))
    second = Measured(
        "gsm8k", "right", "right", True, ("a", "b"), np.array([1.0, 0.0]), problems={"c": "no answer"}, about={"n": 5}
    )
    write_table(tmp_path / "items.parquet", as_table([first, second]))
    again = from_files(tmp_path / "items.parquet", as_records([first, second]))
    for before, after in zip([first, second], again, strict=True):
        assert (before.metric, before.items, before.groups) == (after.metric, after.items, after.groups)
        assert before.clusters == after.clusters
        assert (before.values == after.values).all() and before.problems == after.problems
        assert before.about == after.about and before.kind == after.kind
