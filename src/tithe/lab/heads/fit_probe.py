"""Train the linear head: which layers, how strong a penalty, by cross-validation over prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.engine.heads.base import LayerChoice, chosen_layers
from tithe.engine.heads.probe import Means, ProbeHead
from tithe.errors import DataError
from tithe.lab.heads.chain import Array, Chain, reduction, regression, together
from tithe.lab.heads.trial import Candidate, Trial, choose, cut, sets


@dataclass(frozen=True)
class ProbeFit:
    """A linear head, and how it came about.

    Args:
        head: trained on all rows.
        chain: the same before it was folded.
        layer_aucs: cross-validated AUC of each layer that was looked at.
        candidates: sets of layers that were compared.
        chosen: the one that was taken.
        why: in one sentence.
        components: principal components of each layer in the head.
        folds: of the cross-validation.
    """

    head: ProbeHead
    chain: Chain
    layer_aucs: Mapping[int, float]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    why: str
    components: int
    folds: int

    def as_dict(self) -> dict[str, Any]:
        """Facts for the card."""
        return {
            "layer_aucs": {str(layer): auc for layer, auc in self.layer_aucs.items()},
            "candidates": {one.name: {"auc": one.auc, "error": one.error} for one in self.candidates},
            "chosen": self.chosen.name,
            "why": self.why,
            "c": self.chosen.c,
            "components": self.components,
            "folds": self.folds,
        }


def fit_probe(
    means: Means, labels: npt.ArrayLike, groups: npt.ArrayLike, *, layers: LayerChoice | None, seed: int, folds: int = 5
) -> ProbeFit:
    """Train on mean states.

    The AUC of the set that is chosen was the reason to choose it, so it is a little too good; `judge` asks prompts that
    were not here.

    Args:
        means: (rows, count, width) float32: of all hidden states of the model.
        labels: 1 for the high tier, 0 for the low one.
        groups: the prompt of each row; one prompt is never on both sides of a fold.
        layers: a choice; None takes the best of several.
        seed: of folds and components.
        folds: of the cross-validation.

    Raises:
        DataError: too few prompts, one tier alone, or means that are no numbers.
    """
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_means(means, tiers, prompts)
    count = means.shape[1]
    wanted = tuple(range(count)) if layers is None else chosen_layers(layers, count)
    trial = Trial(means, tiers, cut(tiers, prompts, folds, seed), wanted, seed)
    singles = [trial.candidate(f"layer {layer}", (layer,)) for layer in wanted]
    if layers is None:
        candidates = [max(singles, key=lambda one: one.auc)]
        candidates += [trial.candidate(name, several) for name, several in sets(singles, count)]
        chosen, why = choose(candidates, folds)
    else:
        candidates = [trial.candidate(layers, wanted)]
        chosen, why = candidates[0], f"the layers were given: {layers}"
    chain = final(means, tiers, chosen, seed)
    return ProbeFit(
        head=chain.fold(chosen.layers, count),
        chain=chain,
        layer_aucs={one.layers[0]: one.auc for one in singles},
        candidates=tuple(candidates),
        chosen=chosen,
        why=why,
        components=chain.regression.coef_.shape[1] // len(chosen.layers),
        folds=folds,
    )


def layer_aucs(
    means: Means, labels: npt.ArrayLike, groups: npt.ArrayLike, *, seed: int, folds: int = 5
) -> dict[int, float]:
    """Cross-validated AUC of each hidden state by itself: where in a model the tiers come apart.

    Args and errors are those of `fit_probe`.
    """
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_means(means, tiers, prompts)
    layers = range(means.shape[1])
    trial = Trial(means, tiers, cut(tiers, prompts, folds, seed), layers, seed)
    return {layer: trial.candidate(f"layer {layer}", (layer,)).auc for layer in layers}


def demand_means(means: Means, labels: Array, groups: Array) -> None:
    if means.ndim != 3 or not len(means) == len(labels) == len(groups):
        raise DataError(f"means {means.shape}, {len(labels)} labels and {len(groups)} prompts do not belong together")
    if not set(np.unique(labels).tolist()) == {0, 1}:
        raise DataError("a probe needs labels of both tiers, 1 for high and 0 for low, and no others")
    wrong = [row for row in range(len(means)) if not np.isfinite(means[row]).all()]
    if wrong:
        raise DataError(
            f"the mean states of {len(wrong)} of {len(means)} responses are not finite, e.g. row {wrong[0]}",
            hint="half precision overflows in some models: read the states in bf16 or fp32",
        )


def final(means: Means, labels: Array, chosen: Candidate, seed: int) -> Chain:
    """The chosen layers on all rows."""
    reductions = [reduction(means[:, layer], seed) for layer in chosen.layers]
    reduced = [reduce(means[:, layer]) for reduce, layer in zip(reductions, chosen.layers, strict=True)]
    return Chain(reductions, regression(together(reduced), labels, chosen.c))
