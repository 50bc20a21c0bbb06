from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from tithe.errors import DataError
from tithe.lab.heads.fit_probe import (
    COMPONENTS,
    ROWS,
    TOGETHER,
    Chain,
    LayerSet,
    Reduction,
    choose_layers,
    components_per_layer,
    concatenate,
    cut_folds,
    fit_probe,
    fit_reduction,
    fit_regression,
    layer_aucs,
    layer_sets,
)

COUNT, WIDTH = 6, 12


def some(signals, prompts=60, seed=0):
    """Three responses to every prompt, one of them high; layer l carries signals[l] along a direction of its own."""
    rng = np.random.default_rng(seed)
    labels, groups = np.tile([1, 0, 0], prompts), np.repeat(np.arange(prompts), 3)
    means = rng.standard_normal((3 * prompts, COUNT, WIDTH)).astype(np.float32)
    for layer, signal in signals.items():
        means[:, layer] += signal * labels[:, None] * rng.standard_normal(WIDTH).astype(np.float32)
    means *= np.float32(10.0) ** rng.integers(-2, 3, WIDTH)  # scales as wide apart as those of real states
    return means + np.float32(5), labels, groups


@pytest.fixture(scope="module")
def one_good_layer():
    return fit_probe(*some({4: 1.0}), layers=None, seed=0)


@pytest.mark.slow
def test_the_layer_that_tells_is_found(one_good_layer):
    fit = one_good_layer
    assert fit.chosen.layers == (4,) and fit.head.layers == (4,)
    assert fit.layer_aucs[4] > 0.9 and set(fit.layer_aucs) == set(range(COUNT))
    assert all(0.3 < fit.layer_aucs[layer] < 0.7 for layer in (0, 1, 2, 3, 5))
    assert [one.name for one in fit.candidates] == ["layer 4", "best few", "front", "middle", "back", "all"]
    assert "`layer 4` has the " in fit.why
    assert json.loads(json.dumps(fit.as_dict()))["chosen"] == "layer 4"


def test_it_works_on_prompts_that_it_never_saw(one_good_layer):
    means, labels, _ = some({4: 1.0})
    margins = one_good_layer.head.margins(means[:, [4]])
    assert margins[labels == 1].mean() > 0 > margins[labels == 0].mean()


@pytest.mark.slow
def test_layers_that_tell_together_are_taken_together():
    fit = fit_probe(*some({layer: 0.35 for layer in range(COUNT)}, prompts=120), layers=None, seed=0)
    assert len(fit.chosen.layers) > 1
    assert fit.chosen.auc > max(fit.layer_aucs.values())


@pytest.mark.slow
@pytest.mark.parametrize("layers", [None, "all", "back", "last"])
def test_folding_is_exact(layers):
    means, labels, groups = some({4: 0.5, 5: 0.5})
    fit = fit_probe(means, labels, groups, layers=layers, seed=0)
    own = means[:, list(fit.head.layers)]
    expected = fit.chain.margins(own)
    assert expected.std() > 0.1
    np.testing.assert_allclose(fit.head.margins(own), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    reader = fit.head.reader([1] * len(own))
    for place, layer in enumerate(fit.head.layers):
        reader.take(layer, torch.from_numpy(own[:, place].copy()))
    np.testing.assert_array_equal(fit.head.margins(reader.found().numpy()), fit.head.margins(own))


def test_every_part_of_the_chain_is_folded():
    """Components that were taken from some rows have a mean of their own."""
    means, labels, _ = some({4: 0.5})
    own, reductions = means[:, 3:5], []
    for place in range(2):
        scaler = StandardScaler().fit(own[:, place])
        standard = scaler.transform(own[:, place])
        reductions.append(Reduction(scaler, PCA(5).fit(standard[:40] + np.float32(2))))
    reduced = [reduce(own[:, place]) for place, reduce in enumerate(reductions)]
    chain = Chain(reductions, fit_regression(concatenate(reduced), labels, 1.0))
    expected = chain.margins(own)
    assert expected.std() > 0.1
    np.testing.assert_allclose(chain.fold((3, 4), COUNT).margins(own), expected, rtol=1e-4, atol=1e-4)


def test_given_layers_are_taken():
    fit = fit_probe(*some({0: 1.0}), layers="back", seed=0)
    assert fit.chosen.layers == (4, 5) and fit.why == "the layers were given: back"
    assert set(fit.layer_aucs) == {4, 5}
    assert [one.name for one in fit.candidates] == ["back"]


@pytest.mark.slow
def test_the_seed_decides_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (fit_probe(*some({4: 1.0}), layers="back", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(again.head.weight, first.head.weight)
    assert again.layer_aucs == first.layer_aucs != other.layer_aucs
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_prompt_is_on_one_side_of_a_fold():
    _, labels, groups = some({})
    folds = cut_folds(labels, groups, 5, 0)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(len(labels)))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])


def test_a_memory_of_prompts_is_no_signal():
    """Labels that go with the prompt, and states that are the prompt's: a split by rows would find AUC 1."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 6)
    labels = (rng.permutation(40) % 2)[prompts]
    means = rng.standard_normal((40, 1, 30)).astype(np.float32)[prompts]
    assert fit_probe(means, labels, prompts, layers="all", seed=0).chosen.auc < 0.75


def test_components_are_few_where_rows_are():
    draw = np.random.default_rng(0).standard_normal
    wide = draw((700, 400)).astype(np.float32)
    assert fit_reduction(wide, 0)(wide).shape == (700, COMPONENTS)
    assert fit_reduction(wide[:40], 0)(wide).shape == (700, 10)
    assert fit_reduction(wide[:, :5], 0)(wide[:, :5]).shape == (700, 5)
    tall = draw((ROWS + 500, 8)).astype(np.float32)
    assert fit_reduction(tall, 0)(tall).shape == (ROWS + 500, 8)
    assert (components_per_layer(1, 128), components_per_layer(8, 128), components_per_layer(29, 128)) == (
        128,
        128,
        TOGETHER // 29,
    )


def test_a_dimension_that_never_moves_is_no_trouble():
    means, labels, groups = some({4: 1.0})
    means[:, :, 3] = 7.25
    assert fit_probe(means, labels, groups, layers="back", seed=0).chosen.auc > 0.8


def test_the_fewest_layers_near_the_best_are_taken():
    def one(name, layers, auc, error=0.01):
        return LayerSet(name, layers, auc, error, 1.0)

    many, single, far = one("all", (0, 1, 2), 0.9), one("layer 1", (1,), 0.893), one("front", (0,), 0.88)
    assert choose_layers([single, many, far], 5)[0] is single
    assert (
        "fewest layers within one standard error of the best: AUC 0.8930, `all` 0.9000"
        in choose_layers([single, many], 5)[1]
    )
    assert choose_layers([far, many], 5) == (many, "`all` has the highest AUC, 0.9000 in 5 folds by prompt")


def test_two_states_have_no_thirds():
    singles = [LayerSet(f"layer {layer}", (layer,), 0.5, 0.1, 1.0) for layer in (0, 1)]
    assert layer_sets(singles, 2) == [("best few", (0, 1)), ("all", (0, 1))]


def test_what_cannot_be_trained_on():
    means, labels, groups = some({})
    with pytest.raises(DataError, match="do not belong together"):
        fit_probe(means[1:], labels, groups, layers=None, seed=0)
    with pytest.raises(DataError, match="labels of both tiers"):
        fit_probe(means, np.ones_like(labels), groups, layers=None, seed=0)
    with pytest.raises(DataError, match="4 prompts with a high-tier response are too few for 5 folds"):
        fit_probe(means[:12], labels[:12], groups[:12], layers=None, seed=0)
    means[7, 2, 3] = np.inf
    with pytest.raises(DataError, match=r"1 of 180 responses are not finite, e.g. row 7") as caught:
        fit_probe(means, labels, groups, layers=None, seed=0)
    assert "bf16" in caught.value.hint


@pytest.mark.slow
def test_layers_by_themselves_are_those_of_the_whole_fit() -> None:
    means, labels, groups = some({4: 0.5})
    alone = layer_aucs(means, labels, groups, seed=3)
    assert alone == fit_probe(means, labels, groups, layers="all", seed=3).layer_aucs
