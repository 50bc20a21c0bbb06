from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tithe.errors import DataError, ModelError
from tithe.lab.heads.fit_cnn import fit_cnn

LAYERS, WIDTH = (1, 2), 8
LABELS = np.arange(80) % 2
TRAIN, CHECK = range(48), range(48, 80)


def states(signal=3.0):
    """A burst in the middle of every high response, at a random place."""
    rng = np.random.default_rng(0)
    found = []
    for label in LABELS:
        tokens = int(rng.integers(1, 12))
        one = rng.standard_normal((len(LAYERS), tokens, WIDTH)).astype(np.float32)
        one[:, rng.integers(tokens)] += signal * label
        found.append(torch.from_numpy(one))
    return found


def fit(found, train=TRAIN, check=CHECK, **more):
    given = dict(count=3, width=WIDTH, layers=LAYERS, epochs=3, seed=0, device="cpu", learning_rate=1e-3) | more
    return fit_cnn(lambda rows: [found[row] for row in rows], LABELS, train, check, **given)


def margins(head, found):
    reader = head.reader([one.shape[1] for one in found])
    for place, layer in enumerate(LAYERS):
        reader.take(layer, torch.cat([one[place] for one in found]))
    return head.margins(reader.found().numpy())


@pytest.fixture(scope="module")
def easy():
    return fit(states(), epochs=5, patience=5)


def test_an_easy_task_is_learnt(easy):
    assert easy.epochs[easy.best].auc > 0.95
    assert easy.epochs[0].loss > easy.epochs[-1].loss
    got = margins(easy.head, states())[list(CHECK)]
    high = LABELS[list(CHECK)] == 1
    assert (got[high][:, None] > got[~high]).mean() == pytest.approx(easy.epochs[easy.best].auc, abs=1e-6)
    assert json.loads(json.dumps(easy.as_dict()))["steps"] == easy.steps == 3 * len(easy.epochs)


def test_the_seed_decides_alone():
    found = states()
    before = torch.random.get_rng_state()
    first = fit(found, epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(77)

    def noisy(rows):
        torch.rand(5)  # a reader that draws numbers of its own
        return [found[row] for row in rows]

    again = fit_cnn(
        noisy, LABELS, TRAIN, CHECK, count=3, width=WIDTH, layers=LAYERS, seed=0, device="cpu", learning_rate=1e-3
    )
    other = fit(found, epochs=1, seed=1)
    weights = [one.head.weights() for one in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_more_epochs_begin_as_fewer_do():
    assert fit(states(), epochs=2, patience=9).epochs[:1] == fit(states(), epochs=1).epochs


def test_it_stops_early_and_keeps_the_best():
    """Without a signal the validation side soon gets no better; what is kept has the AUC that was best."""
    got = fit(states(signal=0), epochs=9, patience=2)
    assert len(got.epochs) == got.best + 3 < 9
    assert got.epochs[got.best].auc == max(one.auc for one in got.epochs)
    values = margins(got.head, states(signal=0))[list(CHECK)]
    high = LABELS[list(CHECK)] == 1
    assert (values[high][:, None] > values[~high]).mean() == pytest.approx(got.epochs[got.best].auc, abs=1e-6)


def test_without_a_validation_side_the_last_state_is_kept():
    got = fit(states(), check=(), epochs=2)
    assert (got.best, [one.auc for one in got.epochs]) == (1, [None, None])


def test_progress_is_told():
    told = []
    fit(states(), epochs=2, batch=10, patience=9, progress=lambda *one: told.append(one))
    assert [(done, steps) for done, steps, _ in told] == [(done, 10) for done in range(1, 11)]
    assert all(np.isfinite(loss) for *_, loss in told)


def test_half_precision_states_are_read():
    found = [one.to(torch.bfloat16) for one in states()]
    assert fit(found, epochs=1).epochs[0].loss < 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_stops(value):
    found = states()
    for one in found[24:48]:
        one[0, 0, 0] = value
    with pytest.raises(ModelError, match=r"the loss is nan at step \d, in epoch 1") as caught:
        fit(found)
    assert "bf16" in caught.value.hint


def test_what_cannot_be_trained_on():
    found = states()
    with pytest.raises(DataError, match="the training side has 24 responses of 1 tiers"):
        fit(found, train=range(0, 48, 2))
    with pytest.raises(DataError, match="the validation side has 16 responses of 1 tiers"):
        fit(found, check=range(48, 80, 2))
    with pytest.raises(DataError, match=r"has states \(2, \d+, 8\), they must be \(2, 1 token or more, 9\)"):
        fit(found, width=9)
    with pytest.raises(ModelError, match="are not ascending numbers of 3 hidden states"):
        fit(found, layers=(2, 3))
    with pytest.raises(DataError, match="16 responses were asked for, and 79 were read"):
        fit_cnn(lambda rows: found[1:], LABELS, TRAIN, (), count=3, width=8, layers=LAYERS, seed=0, device="cpu")
