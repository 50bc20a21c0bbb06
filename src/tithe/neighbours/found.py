"""What a search for neighbours is asked, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tithe.neighbours.rows import Distinct, Index, Rows, first_in_rows, spans

if TYPE_CHECKING:
    from tithe.neighbours.exact import Tops

RECORDS = 65_536  # of which lists are made at once


@dataclass(frozen=True)
class Measured:
    """What an approximate search found.

    Args:
        kind: `ivf` or `hnsw`.
        effort: lists looked into, or the breadth of the search.
        recall: share of the true k nearest, over the sample, that were found.
        sample: queries in the sample.
        short: queries with fewer than k neighbours, because the search looked no further.
    """

    kind: str
    effort: int
    recall: float
    sample: int
    short: int

    def __str__(self) -> str:
        share = f"{self.recall:.1%} of the true neighbours of {self.sample:,} sampled queries"
        return f"{self.kind} (effort {self.effort}) found {share}" + (f"; {self.short:,} came short" * (self.short > 0))


@dataclass(frozen=True)
class Neighbours:
    """Who is nearest to each query, the nearest first.

    Args:
        index: (n, k) int64 rows of the pool, -1 where there are fewer.
        similarity: (n, k) float32 cosines, NaN there.
        ann: what an approximate search found of it, measured; None where the search is exact.
    """

    index: Index
    similarity: npt.NDArray[np.float32]
    ann: Measured | None = None

    def __post_init__(self) -> None:
        assert self.index.shape == self.similarity.shape, f"{self.index.shape} and {self.similarity.shape}"
        assert self.index.dtype == np.int64 and self.similarity.dtype == np.float32

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Search:
    """One question: among distinct vectors it is answered, for records it is asked.

    Args:
        queries: all rows that ask.
        asked: which of these are equal.
        targets: all rows of the pool.
        groups: which of these are equal.
        k: neighbours wanted.
        own: whether the pool is the queries, and none is its own neighbour.
        below: neighbours have cosines below it, if given.
    """

    queries: Rows
    asked: Distinct
    targets: Rows
    groups: Distinct
    k: int
    own: bool
    below: float | None

    @property
    def wanted(self) -> int:
        """Distinct vectors to find: with a record's own, if that may be among them."""
        return self.k + self.own

    @property
    def distinct_queries(self) -> Rows:
        return self.queries.only(self.asked.first)

    @property
    def distinct_targets(self) -> Rows:
        return self.targets.only(self.groups.first)

    def exact(self) -> Neighbours:
        from tithe.neighbours.exact import tops  # with torch, which `import tithe.neighbours` is to leave alone

        pool = self.distinct_targets
        return self.records(tops(pool if self.own else self.distinct_queries, pool, self.wanted, self.below))

    def records(self, found: Tops, rows: Index | None = None, answered: Index | None = None) -> Neighbours:
        """From distinct vectors to the records that have them.

        Args:
            found: of each distinct query the nearest distinct vectors of the pool; of their lowest records, the
                lowest first among ties. No record can be nearer than all of theirs.
            rows: the queries to answer, all if None.
            answered: the distinct queries that `found` is of, ascending, all if None.
        """
        rows = np.arange(len(self.queries)) if rows is None else rows
        answered = np.arange(len(found.index)) if answered is None else answered
        index = np.empty((len(rows), self.k), np.int64)
        similarity = np.empty((len(rows), self.k), np.float32)
        for part in spans(len(rows), max(1, RECORDS // self.wanted)):
            group, inverse = np.unique(self.asked.group[rows[part]], return_inverse=True)
            at = np.searchsorted(answered, group)
            members, cosine = spread(found.index[at], found.cosine[at], self.groups)
            members, cosine = members[inverse], cosine[inverse]
            if self.own:
                itself = members == rows[part][:, None]
                order = np.argsort(itself, axis=1, kind="stable")
                members = np.take_along_axis(np.where(itself, -1, members), order, 1)
                cosine = np.take_along_axis(np.where(itself, -np.inf, cosine), order, 1)
            index[part] = members[:, : self.k]
            similarity[part] = np.where(members >= 0, cosine, np.nan)[:, : self.k]
        return Neighbours(index, similarity)


def spread(index: Index, cosine: npt.NDArray[np.float64], groups: Distinct) -> tuple[Index, npt.NDArray[np.float64]]:
    """The first k records among the members of k groups: (rows, k) each, by cosine and then the lowest record."""
    rows, k = index.shape
    # Of a group no more than k members can be among the first k.
    there = index >= 0
    sizes = np.zeros_like(index)
    sizes[there] = np.minimum(groups.sizes[index[there]], k)
    if sizes.max(initial=0) <= 1:
        members = np.full_like(index, -1)
        members[there] = groups.first[index[there]]
        return members, cosine
    flat = sizes.ravel()
    within = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
    member = groups.members[np.repeat(groups.starts[index.ravel()], flat) + within]
    row = np.repeat(np.arange(rows), sizes.sum(axis=1))
    return first_in_rows(row, member, np.repeat(cosine.ravel(), flat), (rows, k))
