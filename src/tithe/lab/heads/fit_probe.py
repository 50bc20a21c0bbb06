"""Train the linear head; layers and penalty are chosen by cross-validation over prompts.

Each layer is standardised and reduced by PCA; a logistic regression on top is folded into one weight per layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from tithe.engine.heads.base import LayerChoice, chosen_layers
from tithe.engine.heads.probe import Means, ProbeHead
from tithe.errors import DataError

COMPONENTS = 128  # principal components of one layer, at most
ROWS = 4000  # rows that PCA is fitted to, at most
TOGETHER = 1024  # components of all layers of a head, at most; each layer gives its first ones
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Reduction:
    """Standardise one layer's means and project them on their first principal components, not whitened."""

    scaler: StandardScaler
    pca: PCA

    def __call__(self, means: Means) -> Array:
        """Map (rows, width) to (rows, components)."""
        return np.asarray(self.pca.transform(self.scaler.transform(means)))


def fit_reduction(means: Means, seed: int) -> Reduction:
    """Fit a reduction to (rows, width), with at most 128 components, a quarter of the rows, or the width.

    PCA sees 4,000 rows at most and takes two power iterations: an approximate subspace is enough, since the regression
    in it is exact.
    """
    scaler = StandardScaler()
    standard = scaler.fit_transform(means)
    # A quarter of the rows leaves enough of them per component to fit the regression.
    wanted = max(1, min(COMPONENTS, means.shape[1], len(means) // 4))
    if len(standard) > ROWS:
        standard = standard[np.random.default_rng(seed).choice(len(standard), ROWS, replace=False)]
    # The randomised solver is no faster once it needs almost all components.
    solver = "randomized" if wanted < 0.8 * min(standard.shape) else "full"
    pca = PCA(wanted, svd_solver=solver, iterated_power=2, random_state=seed)
    return Reduction(scaler, pca.fit(standard))


def components_per_layer(layers: int, components: int) -> int:
    """Return how many components each layer gives to a head of so many layers."""
    return max(1, min(components, TOGETHER // layers))


def concatenate(reduced: Sequence[Array]) -> Array:
    """Concatenate the components of several layers: (rows, layers * components)."""
    each = components_per_layer(len(reduced), min(one.shape[1] for one in reduced))
    return np.concatenate([one[:, :each] for one in reduced], axis=1).astype(np.float64)


def fit_regression(features: Array, labels: Array, c: float) -> LogisticRegression:
    """Fit a logistic regression by Newton's method.

    It takes a dozen steps where a gradient method takes hundreds, since the components differ in scale. Convergence
    warnings are ignored: the remaining digits change no ranking.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, solver="newton-cholesky", max_iter=50).fit(features, labels)


@dataclass(frozen=True)
class Chain:
    """The fitted pipeline from means to margins."""

    reductions: Sequence[Reduction]
    regression: LogisticRegression

    def margins(self, means: Means) -> Array:
        """Map (rows, layers, width) to margins (rows,), step by step."""
        reduced = [reduce(means[:, place]) for place, reduce in enumerate(self.reductions)]
        return np.asarray(self.regression.decision_function(concatenate(reduced)))

    def fold(self, layers: Sequence[int], count: int) -> ProbeHead:
        """Return a head that gives the same margins with one weight per layer and a bias.

        With standardisation (m, s), PCA (V, mean p) and regression (c, b):

        c . V(((x - m) / s) - p) + b  =  (V'c / s) . x  +  b - (V'c / s) . (m + s p)
        """
        coefficients = np.split(self.regression.coef_[0], len(self.reductions))
        weights, bias = [], float(self.regression.intercept_[0])
        for reduce, own in zip(self.reductions, coefficients, strict=True):
            scale = reduce.scaler.scale_.astype(np.float64)
            weight = own @ reduce.pca.components_[: len(own)].astype(np.float64) / scale  # (width,)
            bias -= float(weight @ (reduce.scaler.mean_ + scale * reduce.pca.mean_))
            weights.append(weight)
        weight = torch.from_numpy(np.stack(weights).astype(np.float32))
        return ProbeHead(weight, torch.tensor(bias), layers, count, weight.shape[1])


PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: smaller is stronger
FEW = 3  # layers of the candidate `best few`
FOLDS = 5  # of the cross-validation
Fold: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class ProbeFit:
    """A trained linear head.

    Args:
        head: trained on all rows.
        chain: the pipeline before folding.
        layer_aucs: cross-validated AUC of each layer tried.
        candidates: sets of layers that were compared.
        chosen: the set that the head reads.
        why: reason for the choice, in one sentence.
        components: principal components of each layer in the head.
    """

    head: ProbeHead
    chain: Chain
    layer_aucs: Mapping[int, float]
    candidates: tuple[LayerSet, ...]
    chosen: LayerSet
    why: str
    components: int

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the head's card."""
        return {
            "layer_aucs": {str(layer): auc for layer, auc in self.layer_aucs.items()},
            "candidates": {one.name: {"auc": one.auc, "error": one.error} for one in self.candidates},
            "chosen": self.chosen.name,
            "why": self.why,
            "c": self.chosen.c,
            "components": self.components,
            "folds": FOLDS,
        }


def fit_probe(
    means: Means, labels: npt.ArrayLike, groups: npt.ArrayLike, *, layers: LayerChoice | None, seed: int
) -> ProbeFit:
    """Train on mean states.

    The AUC of the chosen set is slightly optimistic, since it is what the set was chosen by; `judge` measures it on
    other prompts.

    Args:
        means: (rows, count, width) float32, of all hidden states of the model.
        labels: 1 for the high tier, 0 for the low one.
        groups: the prompt of each row; one prompt is never on both sides of a fold.
        layers: which ones to read; None chooses among several sets.
        seed: random seed of folds and components.

    Raises:
        DataError: too few prompts, one tier only, or means that are not finite.
    """
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_means(means, tiers, prompts)
    count = means.shape[1]
    wanted = tuple(range(count)) if layers is None else chosen_layers(layers, count)
    trial = Trial(means, tiers, cut_folds(tiers, prompts, FOLDS, seed), wanted, seed)
    singles = [trial.cross_validate(f"layer {layer}", (layer,)) for layer in wanted]
    if layers is None:
        candidates = [max(singles, key=lambda one: one.auc)]
        candidates += [trial.cross_validate(name, several) for name, several in layer_sets(singles, count)]
        chosen, why = choose_layers(candidates, FOLDS)
    else:
        candidates = [trial.cross_validate(layers, wanted)]
        chosen, why = candidates[0], f"the layers were given: {layers}"
    chain = fit_chain(means, tiers, chosen, seed)
    return ProbeFit(
        head=chain.fold(chosen.layers, count),
        chain=chain,
        layer_aucs={one.layers[0]: one.auc for one in singles},
        candidates=tuple(candidates),
        chosen=chosen,
        why=why,
        components=chain.regression.coef_.shape[1] // len(chosen.layers),
    )


def layer_aucs(means: Means, labels: npt.ArrayLike, groups: npt.ArrayLike, *, seed: int) -> dict[int, float]:
    """Return the cross-validated AUC of each hidden state by itself: it shows where in a model the tiers separate.

    Args and errors are those of `fit_probe`.
    """
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_means(means, tiers, prompts)
    layers = range(means.shape[1])
    trial = Trial(means, tiers, cut_folds(tiers, prompts, FOLDS, seed), layers, seed)
    return {layer: trial.cross_validate(f"layer {layer}", (layer,)).auc for layer in layers}


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


def fit_chain(means: Means, labels: Array, chosen: LayerSet, seed: int) -> Chain:
    """Fit the chosen layers on all rows."""
    reductions = [fit_reduction(means[:, layer], seed) for layer in chosen.layers]
    reduced = [reduce(means[:, layer]) for reduce, layer in zip(reductions, chosen.layers, strict=True)]
    return Chain(reductions, fit_regression(concatenate(reduced), labels, chosen.c))


@dataclass(frozen=True)
class LayerSet:
    """A cross-validated set of layers.

    Args:
        name: such as `layer 12` or `best few`.
        layers: their numbers.
        auc: mean over folds, at the best penalty.
        error: standard error of that mean.
        c: the best penalty.
    """

    name: str
    layers: tuple[int, ...]
    auc: float
    error: float
    c: float


def cut_folds(labels: Array, groups: Array, folds: int, seed: int) -> list[Fold]:
    """Cut folds by prompt, each with both tiers in both parts."""
    for label, tier in ((1, "high"), (0, "low")):
        there = len(np.unique(groups[labels == label]))
        if there < folds:
            raise DataError(
                f"{there} prompts with a {tier}-tier response are too few for {folds} folds",
                hint="label more prompts",
            )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = list(splitter.split(np.zeros(len(labels)), labels, groups))
    if any(len(np.unique(labels[side])) < 2 for fold in found for side in fold):
        raise DataError(
            f"the prompts cannot be cut into {folds} folds with both tiers in each", hint="label more prompts"
        )
    return found


class Trial:
    """Cross-validates sets of layers; each layer is reduced once per fold, for all sets."""

    def __init__(self, means: Means, labels: Array, folds: Sequence[Fold], layers: Sequence[int], seed: int) -> None:
        self.labels, self.folds = labels, folds
        self.reduced: dict[tuple[int, int], Array] = {}  # (fold, layer) -> (rows, components), of all rows
        # Scaler and PCA see the training part only: fitted to all rows they would leak the held-out part.
        for fold, (train, _) in enumerate(folds):
            for layer in layers:
                self.reduced[fold, layer] = fit_reduction(means[train, layer], seed)(means[:, layer])

    def cross_validate(self, name: str, layers: tuple[int, ...]) -> LayerSet:
        """Cross-validate a set of layers at the penalty with the lowest log loss; AUC ignores the scale of margins."""
        found = np.array([self.measure(fold, layers) for fold in range(len(self.folds))])  # (folds, penalties, 2)
        best = int(np.argmin(found[:, :, 1].mean(0)))  # mean log loss over folds
        aucs = found[:, best, 0]
        error = aucs.std(ddof=1) / len(aucs) ** 0.5  # standard error of the mean over folds
        return LayerSet(name, layers, float(aucs.mean()), float(error), PENALTIES[best])

    def measure(self, fold: int, layers: tuple[int, ...]) -> list[tuple[float, float]]:
        """Return AUC and log loss of each penalty on the prompts that this fold holds out."""
        train, test = self.folds[fold]
        features = concatenate([self.reduced[fold, layer] for layer in layers])
        found = []
        for c in PENALTIES:
            fit = fit_regression(features[train], self.labels[train], c)
            margins, truth = fit.decision_function(features[test]), self.labels[test]
            found.append((float(roc_auc_score(truth, margins)), float(log_loss(truth, expit(margins)))))
        return found


def layer_sets(singles: Sequence[LayerSet], count: int) -> list[tuple[str, tuple[int, ...]]]:
    """List the sets of several layers to compare: the best few, the thirds, and all."""
    ranked = sorted(singles, key=lambda one: -one.auc)[:FEW]
    found = [("best few", tuple(sorted(one.layers[0] for one in ranked)))]
    thirds: tuple[LayerChoice, ...] = ("front", "middle", "back") if count >= 3 else ()
    found += [(which, chosen_layers(which, count)) for which in thirds]
    return [*found, ("all", chosen_layers("all", count))]


def choose_layers(candidates: Sequence[LayerSet], folds: int) -> tuple[LayerSet, str]:
    """Choose the fewest layers whose AUC is within one standard error of the best, and say why.

    Among sets with equally many layers, the higher AUC wins.
    """
    best = max(candidates, key=lambda one: one.auc)
    # The one-standard-error rule: prefer the simplest model that is not clearly worse.
    near = [one for one in candidates if one.auc >= best.auc - best.error]
    chosen = min(near, key=lambda one: (len(one.layers), -one.auc))
    if chosen is best:
        return best, f"`{best.name}` has the highest AUC, {best.auc:.4f} in {folds} folds by prompt"
    return chosen, (
        f"`{chosen.name}` has the fewest layers within one standard error of the best: AUC {chosen.auc:.4f}, "
        f"`{best.name}` {best.auc:.4f} +- {best.error:.4f} in {folds} folds by prompt"
    )
