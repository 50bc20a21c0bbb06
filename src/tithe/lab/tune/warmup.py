"""Which examples a model gets its brief experience from, before it scores: IFD's first phase.

Paper: Li et al. 2024, From Quantity to Quality, arXiv 2308.12032, section 2.1 and the ablations of section 4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tithe.neighbours.kmeans import Clusters
from tithe.records import FloatArray

Places = npt.NDArray[np.int64]
LOW, HIGH = 25, 75  # percentiles of a cluster's prompt perplexities between which its examples are taken


def middle(labels: Places, perplexities: FloatArray, each: int) -> Places:
    """Of every cluster some whose prompts are neither easy nor hard, spread evenly over the data set.

    A cluster of fewer than `each` is taken whole. Of a larger one those count whose prompt's perplexity lies between
    the cluster's 25th and 75th percentile, both included, in the order of the data set; if there are `m` of them, every
    `m // each`-th is taken, `each` at most; fewer than `each` are all taken.

    Args:
        labels: (examples,) cluster of each.
        perplexities: (examples,) of each prompt.
        each: how many of a cluster, at most.

    Returns:
        Places of the chosen examples, ascending.
    """
    chosen = []
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        if len(members) >= each:
            low, high = np.percentile(perplexities[members], [LOW, HIGH])
            members = members[(perplexities[members] >= low) & (perplexities[members] <= high)]
        chosen.append(members[:: max(1, len(members) // each)][:each])
    return np.sort(np.concatenate(chosen))


def nearest(clusters: Clusters, vectors: npt.NDArray[np.float32], each: int) -> Places:
    """Of every cluster those nearest to its centre, ties in the order of the data set; places ascending."""
    chosen = []
    for cluster, centre in enumerate(clusters.centres):
        members = np.flatnonzero(clusters.labels == cluster)
        apart = ((vectors[members].astype(np.float64) - centre) ** 2).sum(axis=1)
        chosen.append(members[np.argsort(apart, kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def at_random(examples: int, records: int, seed: int) -> Places:
    """So many places, drawn by chance, ascending; all where there are no more."""
    drawn = np.random.default_rng(seed).permutation(examples)
    return np.sort(drawn[:records])
