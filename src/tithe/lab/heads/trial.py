"""Which layers a linear head should read: sets of them compared by cross-validation over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from tithe.engine.heads.base import LayerChoice, chosen_layers
from tithe.engine.heads.probe import Means
from tithe.errors import DataError
from tithe.lab.heads.chain import Array, reduction, regression, together

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: smaller is stronger
FEW = 3  # layers of the candidate `best few`
Fold: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Candidate:
    """A set of layers, cross-validated.

    Args:
        name: a choice of layers, `layer 12` or `best few`.
        layers: their numbers.
        auc: mean over folds, with the best penalty.
        error: standard error of that mean.
        c: the best penalty.
    """

    name: str
    layers: tuple[int, ...]
    auc: float
    error: float
    c: float


def cut(labels: Array, groups: Array, folds: int, seed: int) -> list[Fold]:
    """Folds by prompt, each with both tiers on both sides."""
    for label, tier in ((1, "high"), (0, "low")):
        there = len(np.unique(groups[labels == label]))
        if there < folds:
            raise DataError(
                f"{there} prompts with a {tier}-tier response are too few for {folds} folds",
                hint="label more prompts, or take fewer folds",
            )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = list(splitter.split(np.zeros(len(labels)), labels, groups))
    if any(len(np.unique(labels[side])) < 2 for fold in found for side in fold):
        raise DataError(
            f"the prompts cannot be cut into {folds} folds with both tiers in each", hint="label more prompts"
        )
    return found


class Trial:
    """Cross-validation of sets of layers; each layer is reduced once a fold, for all sets."""

    def __init__(self, means: Means, labels: Array, folds: Sequence[Fold], layers: Sequence[int], seed: int) -> None:
        self.labels, self.folds = labels, folds
        self.reduced: dict[tuple[int, int], Array] = {}  # (fold, layer) -> (rows, components), of all rows
        for fold, (train, _) in enumerate(folds):
            for layer in layers:
                self.reduced[fold, layer] = reduction(means[train, layer], seed)(means[:, layer])

    def candidate(self, name: str, layers: tuple[int, ...]) -> Candidate:
        """With the penalty of the least log loss: the AUC alone does not see how far margins lie apart."""
        found = np.array([self.measured(fold, layers) for fold in range(len(self.folds))])  # (folds, penalties, 2)
        best = int(np.argmin(found[:, :, 1].mean(0)))
        aucs = found[:, best, 0]
        error = aucs.std(ddof=1) / len(aucs) ** 0.5
        return Candidate(name, layers, float(aucs.mean()), float(error), PENALTIES[best])

    def measured(self, fold: int, layers: tuple[int, ...]) -> list[tuple[float, float]]:
        """AUC and log loss of each penalty, on the prompts that this fold held out."""
        train, test = self.folds[fold]
        features = together([self.reduced[fold, layer] for layer in layers])
        found = []
        for c in PENALTIES:
            fit = regression(features[train], self.labels[train], c)
            margins, truth = fit.decision_function(features[test]), self.labels[test]
            found.append((float(roc_auc_score(truth, margins)), float(log_loss(truth, expit(margins)))))
        return found


def sets(singles: Sequence[Candidate], count: int) -> list[tuple[str, tuple[int, ...]]]:
    """Sets of several layers to compare: the best few, the thirds, and all."""
    ranked = sorted(singles, key=lambda one: -one.auc)[:FEW]
    found = [("best few", tuple(sorted(one.layers[0] for one in ranked)))]
    thirds: tuple[LayerChoice, ...] = ("front", "middle", "back") if count >= 3 else ()
    found += [(which, chosen_layers(which, count)) for which in thirds]
    return [*found, ("all", chosen_layers("all", count))]


def choose(candidates: Sequence[Candidate], folds: int) -> tuple[Candidate, str]:
    """The fewest layers whose AUC is within one standard error of the best; of equally many the higher AUC."""
    best = max(candidates, key=lambda one: one.auc)
    near = [one for one in candidates if one.auc >= best.auc - best.error]
    chosen = min(near, key=lambda one: (len(one.layers), -one.auc))
    if chosen is best:
        return best, f"`{best.name}` has the highest AUC, {best.auc:.4f} in {folds} folds by prompt"
    return chosen, (
        f"`{chosen.name}` has the fewest layers within one standard error of the best: AUC {chosen.auc:.4f}, "
        f"`{best.name}` {best.auc:.4f} +- {best.error:.4f} in {folds} folds by prompt"
    )
