from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tithe.errors import DataError
from tithe.lab.heads.head_judgement import (
    auc_alone,
    auc_within,
    calibration_error,
    draw_prompts,
    interval,
    judge,
    recalibrate,
    resampled_aucs,
    weighted_aucs,
)


def some(prompts=60, signal=0.0, length=0.0, seed=0):
    """Two responses to every prompt, high and low; margins with a signal of their own and one of length."""
    rng = np.random.default_rng(seed)
    labels = np.tile([1, 0], prompts)
    groups = np.repeat([f"prompt {i}" for i in range(prompts)], 2)
    lengths = np.round(100 + 40 * labels * (length > 0) + 20 * rng.standard_normal(2 * prompts))
    margins = signal * labels + length * (lengths - 120) / 20 + rng.standard_normal(2 * prompts) * 0.5
    return margins, labels, groups, lengths, rng.standard_normal(2 * prompts) - labels


def test_pairs_by_hand():
    values, labels = np.array([3.0, 1.0, 2.0, 2.0]), np.array([1, 0, 1, 0])
    # (3, 1) (3, 2) (2, 1) in order, (2, 2) a tie: 3.5 of 4
    assert weighted_aucs(values, labels, np.ones((1, 4))).tolist() == [3.5 / 4]
    # the second high one twice: (3,1) (3,2) 2 x (2,1) 2 x half: 5 of 6
    assert weighted_aucs(values, labels, np.array([[1.0, 1, 2, 1]])).tolist() == [5 / 6]
    assert np.isnan(weighted_aucs(values, labels, np.array([[1.0, 0, 1, 0]]))).all()


def test_weighted_areas_are_those_of_sklearn():
    rng = np.random.default_rng(1)
    values, labels = np.round(rng.standard_normal(200), 1), rng.integers(0, 2, 200)
    weights = rng.integers(0, 4, (20, 200)).astype(float)
    expected = [roc_auc_score(labels, values, sample_weight=one) for one in weights]
    np.testing.assert_allclose(weighted_aucs(values, labels, weights), expected, rtol=1e-12)


def test_resamples_are_of_prompts():
    """A prompt's rows are drawn together, so prompts that are copies of one another make no interval."""
    margins, labels = np.tile([2.0, 1.0, 0.0, 1.0], 25), np.tile([1, 0, 0, 1], 25)
    drawn = resampled_aucs({"x": margins}, labels, np.repeat(np.arange(25), 4), seed=0, resamples=50)["x"]
    np.testing.assert_allclose(drawn, 3.5 / 4, rtol=1e-12)
    assert resampled_aucs({"x": margins}, labels, np.arange(100), seed=0, resamples=50)["x"].std() > 0.01


def test_the_memory_at_once_changes_no_draw():
    few, many = list(draw_prompts(7, 1 << 22, 0, 5)), list(draw_prompts(7, 7, 0, 5))
    assert (len(few), len(many)) == (5, 1)
    np.testing.assert_array_equal(np.concatenate(few), many[0])
    assert (many[0].sum(1) == 7).all()


def test_an_interval_is_of_quantiles():
    found = interval(0.7, np.r_[np.arange(1001.0), np.nan])
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 25, 975))


def test_direction_is_found():
    labels = np.array([1, 1, 0, 0])
    assert auc_alone(np.array([4.0, 3, 2, 1]), labels) == auc_alone(np.array([4.0, 3, 2, 1]) * 2, labels)
    down = auc_alone(np.array([1.0, 2, 3, 4]), labels)
    assert (down.auc, down.higher) == (1.0, False)


def test_within_prompts_by_hand():
    groups = np.array(["a", "a", "a", "b", "b", "c"])
    labels = np.array([1, 0, 0, 1, 0, 1])
    values = np.array([2.0, 1.0, 3.0, 5.0, 5.0, 9.0])
    # a: one of two pairs; b: a tie; c has one tier
    assert auc_within(values, labels, groups) == (0.5, 2)
    values[3] = 6
    assert auc_within(values, labels, groups) == (0.75, 2)
    assert auc_within(values[5:], labels[5:], groups[5:]) == (None, 0)


def test_calibration_by_hand():
    # one bin of .9 with a half true, one of .1 without: (2 * .4 + 2 * .1) / 4
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0])) == pytest.approx(0.25)
    assert calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0


def test_recalibration_finds_what_was_planted():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(truth + 0.5)))).astype(int)
    slope, intercept = recalibrate(4 * truth, labels)
    assert slope == pytest.approx(0.25, abs=0.01)
    assert intercept == pytest.approx(0.5, abs=0.05)


def test_a_head_with_a_signal_is_better_than_length():
    report = judge(*some(signal=3), seed=0, resamples=400)
    assert report.better_than_length
    assert report.auc.value > 0.95 and report.auc.low < report.auc.value <= report.auc.high
    assert report.lines()[0].startswith("the head is better than response length: AUC ")
    assert report.within_prompts == 60 and report.within > 0.95
    assert report.nll.auc > 0.6 and not report.nll.higher
    assert "more likely is high" in report.lines()[4]
    assert json.loads(json.dumps(report.as_dict()))["better_than_length"] is True


def test_a_head_that_reads_length_alone_is_called_out():
    report = judge(*some(length=3), seed=0, resamples=400)
    assert report.auc.value > 0.8
    assert not report.better_than_length
    assert report.lines()[0].startswith("the head is NOT SHOWN TO BE BETTER than response length")
    assert report.length.higher and report.length_rho > 0.9


def test_the_direction_of_length_does_not_matter():
    margins, labels, groups, lengths, nlls = some(length=3)
    there = judge(margins, labels, groups, lengths, nlls, seed=0, resamples=200)
    back = judge(margins, labels, groups, -lengths, nlls, seed=0, resamples=200)
    assert back.over_length.value == pytest.approx(there.over_length.value)
    assert back.over_length.low == pytest.approx(there.over_length.low)
    assert (back.length.auc, back.length.higher) == (pytest.approx(there.length.auc), False)


def test_a_head_without_a_signal_is_not_better():
    report = judge(*some(), seed=0, resamples=400)
    assert "NOT SHOWN TO BE BETTER" in report.lines()[0]
    assert report.auc.low < 0.5 < report.auc.high


def test_constant_lengths_have_no_correlation():
    margins, labels, groups, lengths, nlls = some(signal=2)
    report = judge(margins, labels, groups, np.ones_like(lengths), nlls, seed=0, resamples=50)
    assert report.length_rho is None and report.length.auc == 0.5
    assert "undefined" in report.lines()[5]


def test_margins_without_fault_have_a_finite_slope():
    _, labels, *rest = some()
    report = judge(labels * 2.0 - 1, labels, *rest, seed=0, resamples=50)
    assert report.auc.value == 1 and np.isfinite(report.slope)


def test_the_seed_decides():
    a, b, c = (judge(*some(signal=1), seed=seed, resamples=100) for seed in (1, 1, 2))
    assert a == b != c


def test_what_cannot_be_judged():
    margins, labels, groups, lengths, nlls = some()
    with pytest.raises(DataError, match="do not belong together: 119 head, 120 length"):
        judge(margins[1:], labels, groups, lengths, nlls, seed=0)
    with pytest.raises(DataError, match="1 of 120 responses have a head value that is not finite"):
        judge(np.r_[np.nan, margins[1:]], labels, groups, lengths, nlls, seed=0)
    with pytest.raises(DataError, match="a label is 1 for the high tier or 0"):
        judge(margins, labels * 2, groups, lengths, nlls, seed=0)
    with pytest.raises(DataError, match="0 prompts with a low-tier response are too few to judge a head: it needs 5"):
        judge(margins, np.ones(120, int), groups, lengths, nlls, seed=0)
    with pytest.raises(DataError, match="4 prompts with a high-tier response"):
        judge(margins[:8], labels[:8], groups[:8], lengths[:8], nlls[:8], seed=0)
    with pytest.raises(DataError, match="0 prompts"):
        judge([], [], [], [], [], seed=0)


@pytest.mark.slow
def test_thousands_of_resamples_take_seconds():
    data = some(prompts=2500, signal=1)
    began = time.process_time()
    judge(*data, seed=0)
    assert time.process_time() - began < 10


def test_a_head_that_is_surely_below_length_is_called_worse():
    margins, labels, groups, lengths, nlls = some(signal=1)
    report = judge(margins, labels, groups, lengths + 1000 * labels, nlls, seed=0, resamples=400)
    assert report.over_length.high < 0
    assert report.lines()[0].startswith("the head is WORSE than response length")
