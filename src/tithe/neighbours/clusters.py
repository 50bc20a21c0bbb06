"""k-means on unit vectors, the same on any number of threads."""

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
    """Vectors in clusters, none of them empty.

    Args:
        labels: (n,) int64 cluster of each vector.
        centres: (clusters, dim) float32 means of each cluster's vectors; shorter than 1.
        nearest: (clusters,) int64 the member nearest to each centre, ties by the lowest row; all different.
    """

    labels: Index
    centres: Vectors
    nearest: Index

    def __len__(self) -> int:
        return len(self.centres)


def kmeans(vectors: Vectors, k: int, seed: int = 0) -> Clusters:
    """Lloyd's k-means from a k-means++ start by Euclidean distance, which orders unit vectors as the cosine does.

    One thread does it, so that sums are taken in one order. Clusters are numbered by their lowest row. With no more
    than k distinct vectors each of these is a cluster, so there are fewer than k; near-equal vectors may leave fewer,
    too.

    Args:
        vectors: (n, dim) float32, each of length 1 (or zeros), at least one.
        k: how many clusters, at least 1.
        seed: of the start.

    Raises:
        DataError: no vectors, or some that are not what they should be.
        SettingsError: `k` below 1.
    """
    if k < 1:
        raise SettingsError(f"at least 1 cluster is to be made, not {k}")
    rows = Rows.of(vectors, "cpu")
    if not len(rows):
        raise DataError("there are no vectors to make clusters of")
    groups = distinct(rows)
    labels = groups.group if len(groups.first) <= k else fit(vectors, k, seed)
    return describe(vectors, labels)


def fit(vectors: Vectors, k: int, seed: int) -> Index:
    """Labels by scikit-learn, which warns where it finds fewer clusters than asked for: here that is no surprise."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with threads().limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(k, n_init=1, random_state=seed, algorithm="lloyd").fit(vectors)
    return np.asarray(model.labels_, dtype=np.int64)


@cache
def threads() -> Any:
    """The thread pools of the libraries that are loaded; to look for them takes longer than a small k-means."""
    return importlib.import_module("threadpoolctl").ThreadpoolController()


def describe(vectors: Vectors, labels: Index) -> Clusters:
    """Number clusters by their lowest row; their means, and the members nearest to these, in float64."""
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
    """Squared distances, equal for equal vectors."""
    wide = centre.astype(np.float64)
    return np.concatenate([((vectors[members[part]] - wide) ** 2).sum(axis=1) for part in spans(len(members), 8192)])
