"""Probes on made-up states: the formula by hand, folds that keep a record and its copies together, and noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from tests.gate.small import DIM, KINDS, LAYERS, drawn_of, states_of
from tithe.errors import DataError
from tithe.gate.probes import (
    EVEN,
    FOLDS,
    PENALTY,
    Features,
    cross_fit,
    fit_ridge,
    fit_sound,
    mask_of,
    nested_fit,
    row_space,
    soft_least,
    target,
)

COUNT = 100


def test_a_shift_of_the_copies_is_found() -> None:
    drawn = drawn_of(states_of(COUNT, 0, shift=3.0))
    fit = fit_sound(drawn, trim=0.0)
    # Two layers that are shifted by 3 each: an ideal probe has an AUC of Phi(sqrt(18) / sqrt(2)) = Phi(3) = 0.9987.
    assert 0.97 < fit.auc <= 1
    assert fit.kinds == KINDS and all(value > 0.95 for value in fit.auc_by_kind.values())
    assert all(value > 0.9 for value in fit.auc_untaught.values())  # the kinds are alike here
    assert fit.auc_length == 0.5  # all lengths are equal
    assert np.median(fit.margins[drawn.whole]) > 0 > np.median(fit.margins[~drawn.whole])
    assert fit.kept.all()


def test_lengths_count_in_the_better_direction() -> None:
    drawn = drawn_of(states_of(COUNT, 0, shift=3.0))
    for sign in (1, -1):
        assert fit_sound(replace(drawn, lengths=sign * np.arange(2.0 * COUNT)), trim=0.0).auc_length == 1


def test_a_fit_gives_states_that_it_has_not_seen_their_side() -> None:
    fit = fit_sound(drawn_of(states_of(COUNT, 0, shift=3.0)), trim=0.0)
    margins = np.array([fit.margin_of(one, 2.0) for one in states_of(COUNT, 1, shift=3.0)])
    assert ((margins > 0) == (np.arange(2 * COUNT) < COUNT)).mean() > 0.9


def test_probes_are_the_formula_component_by_component() -> None:
    fit = fit_sound(drawn_of(states_of(COUNT, 0, shift=1.0)), trim=0.0)
    features, weight, bias = fit.probes.features, fit.probes.weight, fit.probes.bias
    one = states_of(1, 5, shift=0.0)[0]
    size = LAYERS * 3 * DIM
    assert weight.shape == (4 + len(KINDS), size)
    expected = []
    for output in range(4 + len(KINDS)):
        total, place = float(bias[output]), 0
        for layer in range(LAYERS):
            prompt, response, last = (
                [
                    (float(one[layer, part, i]) - features.mean[layer, part, i]) / features.deviation[layer, part, i]
                    for i in range(DIM)
                ]
                for part in range(3)
            )
            for view in (response, last, [a * b for a, b in zip(prompt, response, strict=True)]):
                for value in view:
                    total += float(weight[output, place]) * value / size**0.5
                    place += 1
        expected.append(total)
    assert fit.probes(one) == pytest.approx(expected, rel=1e-9)
    # The margin is made of the first four and of the loss.
    margin = fit.margin
    views = [*expected[:4], margin.loss.slope * -1.7 + margin.loss.offset]
    least = -math.log(sum(math.exp(-value) for value in views))
    assert fit.margin_of(one, 1.7) == pytest.approx(margin.least.slope * least + margin.least.offset, rel=1e-9)
    # All views are read by the first regression and by the kinds', and one each by the other three.
    by_view = (weight.reshape(-1, LAYERS, 3, DIM) != 0).any(axis=(1, 3))
    assert by_view.tolist() == [[True] * 3, *np.eye(3, dtype=bool).tolist(), *[[True] * 3] * len(KINDS)]


@pytest.mark.parametrize("part", [1, 2])
def test_damage_in_one_view_is_enough(part: int) -> None:
    """The copies differ in the response's mean state, or in its last token's alone."""
    states = states_of(COUNT, 0, shift=0.0)
    states[COUNT:, :, part, 0] -= 4.0
    fit = fit_sound(drawn_of(states), trim=0.0)
    assert fit.auc > 0.97
    one = states_of(1, 3, shift=0.0)[0]
    other = one.copy()
    other[:, part, 0] -= 8.0
    assert fit.margin_of(one, 2.0) > 0 > fit.margin_of(other, 2.0)


def test_damage_in_the_loss_alone_is_enough() -> None:
    drawn = drawn_of(states_of(COUNT, 0, shift=0.0))
    losses = drawn.losses + 3.0 * ~drawn.whole
    fit = fit_sound(replace(drawn, losses=losses), trim=0.0)
    assert fit.auc > 0.97
    one = states_of(1, 3, shift=0.0)[0]
    assert fit.margin_of(one, 2.0) > 0 > fit.margin_of(one, 5.0)
    # A lower loss is never a sign of damage.
    turned = fit_sound(replace(drawn, losses=drawn.losses - 3.0 * ~drawn.whole), trim=0.0)
    assert turned.margin_of(one, 0.0) == pytest.approx(turned.margin_of(one, 5.0), abs=1e-3)


def test_the_soft_minimum_by_hand() -> None:
    assert soft_least(np.array([0.0, 0.0])) == pytest.approx(-math.log(2))
    assert soft_least(np.array([[-5.0, 40.0], [3.0, 3.0]])) == pytest.approx([-5.0, 3.0 - math.log(2)])
    assert soft_least(np.array([-1000.0, 1000.0])) == -1000.0  # nothing overflows


def test_views_are_left_out_by_a_mask_that_keeps_the_length() -> None:
    states = states_of(COUNT, 0, shift=0.0)
    flat = Features.of(states)(states)
    both = (flat * mask_of((0, 1), states)) ** 2
    assert both.sum() == pytest.approx((flat**2).sum(), rel=0.1)
    assert (mask_of((0, 1, 2), states) == 1).all()
    shaped = both.reshape(len(flat), LAYERS, 3, DIM)
    assert shaped[:, :, :2].all() and not shaped[:, :, 2].any()


def test_features_are_standardised_by_the_states_they_are_made_of() -> None:
    states = states_of(COUNT, 0, shift=1.0)
    features = Features.of(states)
    assert features.mean == pytest.approx(states.astype(np.float64).mean(axis=0))
    assert features.deviation == pytest.approx(states.astype(np.float64).std(axis=0) + EVEN)
    # Response and last token have a variance of 1 each; divided by the root of the size, lengths are about 1.
    assert (features(states) ** 2).sum(axis=1).mean() == pytest.approx(1, abs=0.1)
    constant = np.ones((4, LAYERS, 3, DIM), dtype=np.float32)
    assert not Features.of(constant)(constant).any()


@pytest.mark.parametrize("rows", [30, 300])
def test_a_ridge_in_the_row_space_is_the_ridge_on_all_features(rows: int) -> None:
    """With fewer rows than features, and with more."""
    random = np.random.default_rng(0)
    flat, goal = random.normal(size=(rows, 60)), np.where(random.random(rows) < 0.3, 1.0, -1.0)
    weight = np.where(goal > 0, rows / 2 / (goal > 0).sum(), rows / 2 / (goal < 0).sum())
    plain = Ridge(PENALTY).fit(flat, goal, sample_weight=weight)
    coordinates, basis = row_space(flat)
    assert coordinates @ basis == pytest.approx(flat)
    assert basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-9)
    fit = fit_ridge(coordinates, goal, goal > 0)
    assert fit.coef_ @ basis == pytest.approx(plain.coef_, abs=1e-8)
    assert float(fit.intercept_) == pytest.approx(float(plain.intercept_), abs=1e-8)


def test_a_record_and_its_copies_are_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_of(states_of(COUNT, 0, shift=1.0))
    seen = []
    split = GroupKFold.split

    def recorded(self: GroupKFold, rows: object, y: object = None, groups: object = None) -> object:
        for training, held_out in split(self, rows, y, groups):
            seen.append((set(drawn.groups[training]), set(drawn.groups[held_out])))
            yield training, held_out

    monkeypatch.setattr(GroupKFold, "split", recorded)
    fit_sound(drawn, trim=0.0)
    assert len(seen) == FOLDS and set.union(*(held_out for _, held_out in seen)) == set(range(COUNT))
    assert all(not training & held_out for training, held_out in seen)


def test_a_cross_fitted_output_does_not_change_with_the_records_own_side() -> None:
    random = np.random.default_rng(0)
    rows, goal = random.normal(size=(50, 20)), target(np.arange(50) % 2 == 0)
    folds = [(a, b) for a, b in GroupKFold(FOLDS).split(rows, groups=np.arange(50) // 2)]
    everything = np.ones((FOLDS, 50), dtype=bool)
    before = cross_fit(rows, goal, everything, folds, goal > 0)
    held_out = folds[0][1]
    turned = goal.copy()
    turned[held_out] *= -1
    after = cross_fit(rows, turned, everything, folds, goal > 0)
    assert (after[held_out] == before[held_out]).all() and (after != before).any()


def test_positives_are_trimmed_by_outputs_that_do_not_change_with_the_held_out_side() -> None:
    random = np.random.default_rng(0)
    rows, goal = random.normal(size=(50, 20)), target(np.arange(50) % 2 == 0)
    folds = [(a, b) for a, b in GroupKFold(FOLDS).split(rows, groups=np.arange(50) // 2)]
    turned = goal.copy()
    turned[folds[2][1]] *= -1
    before, after = nested_fit(rows, goal > 0, folds)[2], nested_fit(rows, turned > 0, folds)[2]
    np.testing.assert_array_equal(before, after)
    assert np.flatnonzero(np.isnan(before)).tolist() == folds[2][1].tolist()


@pytest.mark.parametrize("trim", [0.0, 0.3])
@pytest.mark.parametrize("own", [0.0, 10.0])
def test_noise_cannot_be_told_apart(own: float, trim: float) -> None:
    """Neither does it help to know a record again, nor to have trimmed the others by probes that have seen it."""
    found = [fit_sound(drawn_of(states_of(COUNT, seed, shift=0.0, own=own)), trim=trim).auc for seed in range(6)]
    # One AUC of 100 against 100 varies by sqrt(201 / (12 * 100 * 100)) = 0.041, and the mean of six by 0.017.
    assert 0.45 < np.mean(found) < 0.55


def test_records_that_look_damaged_are_no_positives_in_the_end() -> None:
    """A quarter of the drawn records are shifted as the copies are."""
    states = states_of(200, 0, shift=4.0)
    states[:50, :, 1, 0] -= 4.0
    fit = fit_sound(drawn_of(states), trim=0.3)
    left_out = np.flatnonzero(~fit.kept)
    assert 45 <= len(left_out) <= 60 and np.count_nonzero(left_out < 50) >= 45


def test_a_pool_without_damage_is_hardly_trimmed() -> None:
    fit = fit_sound(drawn_of(states_of(200, 0, shift=4.0)), trim=0.3)
    assert np.count_nonzero(~fit.kept) <= 12  # 6 %, twice an estimate of 3 %


def test_the_fingerprint_changes_with_whatever_affects_the_outputs() -> None:
    probes = fit_sound(drawn_of(states_of(20, 0, shift=1.0)), trim=0.0).probes
    features = probes.features

    def moved(values: np.ndarray) -> np.ndarray:
        other = values.copy()
        other.flat[0] = np.nextafter(other.flat[0], np.inf)
        return other

    others = [
        replace(probes, weight=moved(probes.weight)),
        replace(probes, bias=moved(probes.bias)),
        replace(probes, features=replace(features, mean=moved(features.mean))),
        replace(probes, features=replace(features, deviation=moved(features.deviation))),
    ]
    assert len({one.fingerprint for one in (probes, *others)}) == 5
    assert replace(probes, weight=probes.weight.copy()).fingerprint == probes.fingerprint
    assert len(probes.fingerprint) == 16


def test_states_that_are_not_finite_are_refused() -> None:
    states = states_of(20, 0, shift=1.0)
    states[3, 0, 0, 0], states[7, 1, 2, 1] = np.nan, np.inf
    with pytest.raises(DataError, match="the hidden states of 2 of 40 passes are not finite") as caught:
        fit_sound(drawn_of(states), trim=0.0)
    assert "fp32" in str(caught.value.hint)


def test_too_few_records_are_refused() -> None:
    with pytest.raises(DataError, match="4 records with a damaged copy are too few for 5 folds"):
        fit_sound(drawn_of(states_of(4, 0, shift=1.0)), trim=0.0)
