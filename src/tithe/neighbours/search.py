"""Nearest neighbours by cosine: the front door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.neighbours.rows import Distinct, Index, Rows, Vectors, distinct, first_in_rows, spans

if TYPE_CHECKING:
    from tithe.neighbours.ann import Ann, Measured
    from tithe.neighbours.exact import Tops

EXACT_UP_TO = 1_000_000  # rows of the pool
RECORDS = 65_536  # of which lists are made at once

Method: TypeAlias = "Literal['auto', 'exact', 'ann'] | Ann"


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


def nearest(
    vectors: Vectors,
    k: int = 1,
    *,
    pool: Vectors | None = None,
    exclude_above: float | None = None,
    device: str = "auto",
    method: Method = "auto",
) -> Neighbours:
    """The k nearest by cosine of each vector, ties by the lowest row.

    The exact search is exact for each row, also among near ties and thousands of equal vectors, and gives the same on
    every machine: a cosine is taken to a multiple of 2^-40, and is the same number whatever it is computed with (see
    `cosine`). Equal vectors have cosine 1. A vector of zeros has cosine 0 with every vector, another one of zeros
    included, and so its neighbours are the lowest rows. Memory is bounded: some 200 MB beside vectors and result.

    Args:
        vectors: (n, dim) float32, each of length 1 (or zeros).
        k: how many neighbours, at least 1.
        pool: (rows, dim) where to find them; None for `vectors` themselves, of which none is its own neighbour.
        exclude_above: neighbours of this cosine or a greater one are passed over, for the next best; compared before
            a cosine is rounded to float32. 1 passes over equal vectors.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        method: `exact`; `ann` or the settings of an approximate search; `auto` is exact for pools of up to a million.

    Raises:
        DataError: numbers that are not finite, lengths that are not 1, or a pool of another dimension.
        SettingsError: a setting out of range.
        MissingExtraError: an approximate search without the extra `tithe[ann]`.
    """
    check(k, exclude_above, method)
    queries, targets = Rows.of(vectors, device), Rows.of(vectors if pool is None else pool, device, "pool")
    if queries.dim != targets.dim:
        raise DataError(
            f"vectors have {queries.dim} numbers each, those of the pool {targets.dim}", hint="use one encoder for both"
        )
    groups = distinct(targets)
    asked = groups if pool is None else distinct(queries)
    ask = Search(queries, asked, targets, groups, k, pool is None, exclude_above)
    if method == "exact" or (method == "auto" and len(targets) <= EXACT_UP_TO):
        return ask.exact()
    from tithe.neighbours.ann import Ann, approximate

    return approximate(ask, method if isinstance(method, Ann) else Ann())


def check(k: int, exclude_above: float | None, method: Method) -> None:
    if k < 1:
        raise SettingsError(f"at least 1 neighbour is to be found, not {k}")
    if exclude_above is not None and not -1 < exclude_above <= 1:
        raise SettingsError(
            f"neighbours are passed over from a cosine above -1 and at most 1, not {exclude_above}",
            hint="1 passes over equal vectors, 0.95 near duplicates",
        )
    if isinstance(method, str) and method not in ("auto", "exact", "ann"):
        raise SettingsError(f"there is no search `{method}`", hint="there is: ann, auto, exact")


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
        from tithe.neighbours.exact import tops

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
