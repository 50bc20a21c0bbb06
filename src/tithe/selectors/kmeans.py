"""A quota for every cluster of similar prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tithe.errors import SettingsError
from tithe.neighbours import kmeans
from tithe.neighbours.clusters import distances
from tithe.records import Scores, Selection
from tithe.selectors.base import Diverse, scored
from tithe.selectors.budget import Budget, share_out
from tithe.selectors.rank import Top


@dataclass(frozen=True)
class KMeans(Diverse):
    """Keeps the best of every cluster of similar prompts, so that every topic is there.

    Paper:    Li et al. 2023, From quantity to quality, arXiv 2308.12032: the pre-experience of IFD, 100 clusters and
              10 examples of each
    Formula:  k-means on the vectors; equal quotas of the budget, and what a cluster cannot fill goes to the others
    Cost:     examples x clusters x dim, a few dozen times

    If the rows cannot be divided evenly, larger clusters get the rest. Clusters depend on the examples' vectors and ids
    and on the seed, not on the order of the input. A token budget is spent over the clusters in turn.

    Args:
        clusters: how many, at least 1; fewer if there are fewer distinct prompts.
        inner: order within a cluster: the highest scores first (`top`), or the nearest to its centre (`centre`).
        share: `equal`, or `proportional` to the clusters' sizes.
        seed: of the k-means.
    """

    name: ClassVar[str] = "kmeans"
    clusters: int = 100
    inner: Literal["top", "centre"] = "top"
    share: Literal["equal", "proportional"] = "equal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise SettingsError(f"`clusters` must be at least 1, not {self.clusters}")
        if self.inner not in ("top", "centre"):
            raise SettingsError(f"`inner` is `top` or `centre`, not `{self.inner}`")
        if self.share not in ("equal", "proportional"):
            raise SettingsError(f"`share` is `equal` or `proportional`, not `{self.share}`")

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Keep the front of every cluster."""
        queues = self._queues(scores)
        sizes = {label: len(queue) for label, queue in queues.items()}
        kept = share_out(scores, budget, queues, None if self.share == "equal" else sizes)
        return self.settle(scores, kept, "below the budget" if budget.unit == "tokens" else "below its cluster's quota")

    def _queues(self, scores: Scores) -> dict[str, list[int]]:
        """Return cluster -> indices, the one to keep first at the front; larger clusters first."""
        # By id, so that clusters do not depend on the order of the input.
        there = np.array(sorted(scored(scores).tolist(), key=scores.ids.__getitem__), dtype=np.intp)
        if not len(there):
            return {}
        vectors = self.vectors(scores, there)
        found = kmeans(vectors, self.clusters, self.seed)
        rank = np.empty(len(scores), dtype=np.float64)  # of each example by score, 0 is the highest
        rank[Top().order(scores)] = np.arange(len(there))
        queues = []
        for cluster, centre in enumerate(found.centres):
            inside = np.flatnonzero(found.labels == cluster)
            members = there[inside]
            first = rank[members] if self.inner == "top" else distances(vectors, inside, centre)
            queues.append(members[np.lexsort((members, first))].tolist())  # ties by input order
        queues.sort(key=len, reverse=True)
        return {f"{place:09d}": queue for place, queue in enumerate(queues)}
