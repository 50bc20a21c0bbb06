"""Cluster unit vectors by k-means, with the same result on any number of threads."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.neighbours.rows import Index, Rows, Vectors, distinct, spans


@dataclass(frozen=True)
class Clusters:
    """The clusters of some vectors, none of them empty.

    Args:
        labels: (n,) int64, the cluster of each vector.
        centres: (clusters, dim) float32, the mean of each cluster's vectors; shorter than 1.
        nearest: (clusters,) int64, the member nearest to each centre, ties by the lowest row; all different.
    """

    labels: Index
    centres: Vectors
    nearest: Index

    def __len__(self) -> int:
        return len(self.centres)


def kmeans(vectors: Vectors, k: int, seed: int = 0) -> Clusters:
    """Run Lloyd's k-means from a k-means++ start by Euclidean distance, which orders unit vectors as the cosine does.

    It runs on one thread, so that sums are always taken in one order. Clusters are numbered by their lowest row. There
    are fewer than k if there are fewer distinct vectors (each is then a cluster), or if some are nearly equal.

    Args:
        vectors: (n, dim) float32, each of length 1 (or zeros), at least one.
        k: how many clusters, at least 1.
        seed: of the k-means++ start.

    Raises:
        DataError: no vectors, or a vector whose length is neither 1 nor 0.
        SettingsError: `k` below 1.
    """
    if k < 1:
        raise SettingsError(f"k-means needs at least 1 cluster, not {k}")
    rows = Rows.of(vectors, "cpu")
    if not len(rows):
        raise DataError("there are no vectors to cluster")
    groups = distinct(rows)
    labels = groups.group if len(groups.first) <= k else fit(vectors, k, seed)
    return describe(vectors, labels)


def fit(vectors: Vectors, k: int, seed: int) -> Index:
    """Compute labels with scikit-learn, without its warning about fewer clusters than k: nearly equal rows cause it."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with threads().limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(k, n_init=1, random_state=seed, algorithm="lloyd").fit(vectors)
    return np.asarray(model.labels_, dtype=np.int64)


@cache
def threads() -> Any:
    """Return a controller of the loaded libraries' thread pools; cached, as finding them outlasts a small k-means."""
    return importlib.import_module("threadpoolctl").ThreadpoolController()


def describe(vectors: Vectors, labels: Index) -> Clusters:
    """Number clusters by their lowest row, and compute their means and nearest members in float64."""
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    labels = rank[labels]
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(len(first) + 1))
    centres = np.empty((len(first), vectors.shape[1]), np.float32)
    nearest = np.empty(len(first), np.int64)
    for cluster in range(len(first)):
        members = order[starts[cluster] : starts[cluster + 1]]
        centres[cluster] = mean(vectors, members)
        nearest[cluster] = members[np.argmin(distances(vectors, members, centres[cluster]))]
    return Clusters(labels, centres, nearest)


def mean(vectors: Vectors, members: Index) -> npt.NDArray[np.float64]:
    total = np.zeros(vectors.shape[1])
    for part in spans(len(members), 8192):
        total += vectors[members[part]].sum(axis=0, dtype=np.float64)
    return total / len(members)


def distances(vectors: Vectors, members: Index, centre: Vectors) -> npt.NDArray[np.float64]:
    """Return squared distances; a BLAS would give equal vectors slightly different ones."""
    wide = centre.astype(np.float64)
    return np.concatenate([((vectors[members[part]] - wide) ** 2).sum(axis=1) for part in spans(len(members), 8192)])
