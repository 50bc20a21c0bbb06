"""Standardise, PCA, logistic regression: fitted layer by layer, and folded into one weight a layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tithe.engine.heads.probe import Means, ProbeHead

COMPONENTS = 128  # of one layer, at most
ROWS = 4000  # that components are taken from, at most
TOGETHER = 1024  # of all layers of one head, at most: each then gives its first ones
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Reduction:
    """One layer's standardised means on their first principal components, not whitened."""

    scaler: StandardScaler
    pca: PCA

    def __call__(self, means: Means) -> Array:
        """(rows, width) -> (rows, components)."""
        return np.asarray(self.pca.transform(self.scaler.transform(means)))


def reduction(means: Means, seed: int) -> Reduction:
    """Fitted to (rows, width): 128 components, or as many as a quarter of the rows, or the width.

    The components come from 4,000 rows at most, and from two power iterations: which plane is looked at need not be
    exact, what is then done in it is.
    """
    scaler = StandardScaler()
    standard = scaler.fit_transform(means)
    wanted = max(1, min(COMPONENTS, means.shape[1], len(means) // 4))
    if len(standard) > ROWS:
        standard = standard[np.random.default_rng(seed).choice(len(standard), ROWS, replace=False)]
    solver = "randomized" if wanted < 0.8 * min(standard.shape) else "full"
    pca = PCA(wanted, svd_solver=solver, iterated_power=2, random_state=seed)
    return Reduction(scaler, pca.fit(standard))


def share(layers: int, components: int) -> int:
    """How many components each of so many layers gives to a head."""
    return max(1, min(components, TOGETHER // layers))


def together(reduced: Sequence[Array]) -> Array:
    """Components of several layers side by side: (rows, layers * components)."""
    each = share(len(reduced), min(one.shape[1] for one in reduced))
    return np.concatenate([one[:, :each] for one in reduced], axis=1).astype(np.float64)


def regression(features: Array, labels: Array, c: float) -> LogisticRegression:
    """Newton's method: a dozen steps, where a gradient method takes hundreds over components of unlike size.

    Where it stops before the last digit, the digits that are missing order nothing differently.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, solver="newton-cholesky", max_iter=50).fit(features, labels)


@dataclass(frozen=True)
class Chain:
    """The whole way from means to margins, as it was fitted."""

    reductions: Sequence[Reduction]
    regression: LogisticRegression

    def margins(self, means: Means) -> Array:
        """(rows, layers, width) -> (rows,), step by step."""
        reduced = [reduce(means[:, place]) for place, reduce in enumerate(self.reductions)]
        return np.asarray(self.regression.decision_function(together(reduced)))

    def fold(self, layers: Sequence[int], count: int) -> ProbeHead:
        """The same margins from one weight a layer and a bias.

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
