"""Find nearest neighbours by cosine: exactly, or with a faiss index whose recall is measured."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, MissingExtraError, SettingsError
from tithe.extras import install_hint
from tithe.neighbours.rows import Cosines, Distinct, Index, Rows, Tops, Vectors, distinct, first_in_rows, spans

EXACT_UP_TO = 1_000_000  # rows of the pool
RECORDS = 65_536  # entries of the result that are expanded to records at once
SPARE = 8  # candidates beyond those wanted: faiss orders them by rounded products
TRAIN = 64  # training vectors for each list of an inverted file


@dataclass(frozen=True)
class Ann:
    """Settings of an approximate search with faiss.

    Args:
        kind: `ivf`, an inverted file, or `hnsw`, a graph: more memory and time to build, often better recall.
        effort: lists visited (ivf) or the breadth of the search (hnsw); None for a 64th of the lists, or 128.
        most: most candidates to look at for one query when near ones are excluded.
        sample: number of queries on which recall is measured against exact search.
        seed: of the sample and of the lists.
    """

    kind: Literal["ivf", "hnsw"] = "ivf"
    effort: int | None = None
    most: int = 1024
    sample: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("ivf", "hnsw"):
            raise SettingsError(f"unknown approximate search `{self.kind}`", hint="choose hnsw or ivf")
        if min(1 if self.effort is None else self.effort, self.most, self.sample) < 1:
            raise SettingsError("`effort`, `most` and `sample` of an approximate search must be at least 1")


@dataclass(frozen=True)
class AnnRecall:
    """How well an approximate search did.

    Args:
        kind: `ivf` or `hnsw`.
        effort: lists visited, or the breadth of the search.
        recall: share of the true k nearest neighbours that were found, over the sample.
        sample: queries in the sample.
        short: queries with fewer than k neighbours because the search stopped too early.
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
    """The neighbours of each query, the nearest first.

    Args:
        index: (n, k) int64 rows of the pool, -1 where there are fewer than k.
        similarity: (n, k) float32 cosines, NaN where there are fewer.
        ann: the measured recall of an approximate search; None if the search was exact.
    """

    index: Index
    similarity: npt.NDArray[np.float32]
    ann: AnnRecall | None = None

    def __post_init__(self) -> None:
        assert self.index.shape == self.similarity.shape, f"{self.index.shape} and {self.similarity.shape}"
        assert self.index.dtype == np.int64 and self.similarity.dtype == np.float32

    def __len__(self) -> int:
        return len(self.index)


Method: TypeAlias = Literal["auto", "exact", "ann"] | Ann


def nearest(
    vectors: Vectors,
    k: int = 1,
    *,
    pool: Vectors | None = None,
    exclude_above: float | None = None,
    device: str = "auto",
    method: Method = "auto",
) -> Neighbours:
    """Find the k nearest neighbours of each vector by cosine, ties by the lowest row.

    The exact search is exact for each row, also among near ties and thousands of equal vectors, and gives the same
    result on every machine: a cosine is rounded to a multiple of 2^-40 and does not depend on what computed it (see
    `exact`). Equal vectors have cosine 1. A zero vector has cosine 0 with every vector, zero ones included, so its
    neighbours are the lowest rows. Memory is bounded: some 200 MB beside vectors and result.

    Args:
        vectors: (n, dim) float32, each of length 1 (or zeros).
        k: how many neighbours, at least 1.
        pool: (rows, dim) where to look; None for `vectors` themselves, where no vector is its own neighbour.
        exclude_above: skip neighbours of this cosine or more and take the next best; compared before a cosine is
            rounded to float32. 1 skips equal vectors.
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
    search = Search(queries, asked, targets, groups, k, pool is None, exclude_above)
    if method == "exact" or (method == "auto" and len(targets) <= EXACT_UP_TO):
        return search.exact()
    return approximate(search, method if isinstance(method, Ann) else Ann())


def check(k: int, exclude_above: float | None, method: Method) -> None:
    if k < 1:
        raise SettingsError(f"`k` must be at least 1, not {k}")
    if exclude_above is not None and not -1 < exclude_above <= 1:
        raise SettingsError(
            f"`exclude_above` must be a cosine above -1 and at most 1, not {exclude_above}",
            hint="1 skips equal vectors, 0.95 near duplicates",
        )
    if isinstance(method, str) and method not in ("auto", "exact", "ann"):
        raise SettingsError(f"unknown search method `{method}`", hint="choose ann, auto or exact")


@dataclass(frozen=True)
class Search:
    """One search. It runs over distinct vectors; the result is expanded to all records that have them.

    Args:
        queries: all query rows.
        asked: groups of equal queries.
        targets: all rows of the pool.
        groups: groups of equal targets.
        k: neighbours wanted.
        own: whether the pool is the queries themselves, so that no row may be its own neighbour.
        below: neighbours must have a cosine below this, if given.
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
        """How many distinct vectors to find: one more where a record's own vector is among them."""
        return self.k + self.own

    @property
    def distinct_queries(self) -> Rows:
        return self.queries.only(self.asked.first)

    @property
    def distinct_targets(self) -> Rows:
        return self.targets.only(self.groups.first)

    def exact(self) -> Neighbours:
        from tithe.neighbours.exact import tops  # it loads torch, which `import tithe.neighbours` must not

        pool = self.distinct_targets
        # The same object for both tells `tops` to compute lengths once.
        return self.records(tops(pool if self.own else self.distinct_queries, pool, self.wanted, self.below))

    def records(self, found: Tops, rows: Index | None = None, answered: Index | None = None) -> Neighbours:
        """Expand distinct vectors to the records that have them.

        Args:
            found: the nearest distinct vectors of each distinct query, ties by the lowest record that has them. The k
                nearest records are among those that have these vectors.
            rows: the queries to answer, all if None.
            answered: the distinct queries that `found` is about, ascending, all if None.
        """
        rows = np.arange(len(self.queries)) if rows is None else rows
        answered = np.arange(len(found.index)) if answered is None else answered
        index = np.empty((len(rows), self.k), np.int64)
        similarity = np.empty((len(rows), self.k), np.float32)
        for part in spans(len(rows), max(1, RECORDS // self.wanted)):
            group, inverse = np.unique(self.asked.group[rows[part]], return_inverse=True)
            at = np.searchsorted(answered, group)
            members, cosine = expand(found.index[at], found.cosine[at], self.groups)
            members, cosine = members[inverse], cosine[inverse]  # (groups, wanted) -> (rows, wanted)
            if self.own:  # move the record itself behind the others
                itself = members == rows[part][:, None]
                order = np.argsort(itself, axis=1, kind="stable")
                members = np.take_along_axis(np.where(itself, -1, members), order, 1)
                cosine = np.take_along_axis(np.where(itself, -np.inf, cosine), order, 1)
            index[part] = members[:, : self.k]
            similarity[part] = np.where(members >= 0, cosine, np.nan)[:, : self.k]
        return Neighbours(index, similarity)


def expand(index: Index, cosine: Cosines, groups: Distinct) -> tuple[Index, Cosines]:
    """Return the first k records among the members of k groups: (rows, k) each, by cosine and then lowest record."""
    rows, k = index.shape
    # No more than k members of a group can be among the first k.
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


def approximate(search: Search, ann: Ann) -> Neighbours:
    """Search a faiss index of the pool's distinct vectors; cosines, ties and order of what it finds are exact.

    An inverted file learns its lists by k-means on all available threads, so a neighbour that is missed on one machine
    may be found on another.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    pool = search.distinct_targets
    queries = pool if search.own else search.distinct_queries
    index, effort = build(pool, ann)
    found = search.records(look_up(index, queries, pool, search, ann.most))
    chosen = np.random.default_rng(ann.seed).permutation(len(search.queries))[: ann.sample]
    recall = recall_of(found.index[chosen], true_neighbours(search, chosen))
    short = int((found.index[:, -1] < 0).sum()) if len(search.targets) - search.own >= search.k else 0
    return replace(found, ann=AnnRecall(ann.kind, effort, recall, len(chosen), short))


def faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtraError(
            "an approximate search needs the package `faiss`", hint=f"{install_hint('ann')}, or `method='exact'`"
        ) from None


def build(pool: Rows, ann: Ann) -> tuple[Any, int]:
    """Build an inner-product index of the pool; return it and the effort in force."""
    library = faiss()
    if ann.kind == "hnsw":
        index = library.IndexHNSWFlat(pool.dim, 32, library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        effort = index.hnsw.efSearch = ann.effort or 128
    else:
        lists = max(1, min(int(4 * math.sqrt(len(pool))), len(pool) // 39))  # faiss warns of fewer than 39 each
        quantizer = library.IndexFlatIP(pool.dim)
        index = library.IndexIVFFlat(quantizer, pool.dim, lists, library.METRIC_INNER_PRODUCT)
        index.cp.seed = ann.seed
        order = np.random.default_rng(ann.seed).permutation(len(pool))
        index.train(block(pool, np.sort(order[: TRAIN * lists])))
        effort = index.nprobe = min(lists, ann.effort or max(8, lists // 64))
    for part in spans(len(pool), pool.fitting(4)):
        index.add(block(pool, part))
    return index, effort


def block(rows: Rows, part: slice | Index) -> Vectors:
    array: Vectors = rows.take(part).cpu().numpy()
    return array


def look_up(index: Any, queries: Rows, pool: Rows, search: Search, most: int) -> Tops:
    """Return the nearest that the index finds.

    Where `below` excludes too many of them, the query is repeated with four times as many candidates, up to `most`.
    """
    out = Tops.empty(len(queries), search.wanted)
    todo, look = np.arange(len(queries)), search.wanted + SPARE
    while len(todo):
        look = min(look, len(pool))
        for part in spans(len(todo), max(1, queries.fitting(32) // look)):
            rows = todo[part]
            place = index.search(block(queries, rows), look)[1]  # (rows, look)
            out.index[rows], out.cosine[rows] = ordered(queries.only(rows), pool, place, search)
        if search.below is None or look >= min(most, len(pool)):
            break
        todo, look = todo[out.index[todo, search.k - 1] < 0], min(4 * look, most)
    return out


def ordered(queries: Rows, pool: Rows, place: Index, search: Search) -> tuple[Index, Cosines]:
    """Sort what the index found by exact cosine, ties by the lowest row: (rows, wanted) rows and cosines."""
    from tithe.neighbours.exact import cosines_of, paired, squares

    row, column = np.nonzero(place >= 0)  # faiss fills up with -1
    at = place[row, column]
    a, b = queries.take(row), pool.take(at)
    cosine = cosines_of(paired(a, b), squares(a), squares(b)).cpu().numpy()
    allowed = np.flatnonzero(cosine < (np.inf if search.below is None else search.below))
    return first_in_rows(row[allowed], at[allowed], cosine[allowed], (len(place), search.wanted))


def true_neighbours(search: Search, chosen: Index) -> Index:
    """Return the exact neighbours of some queries."""
    from tithe.neighbours.exact import tops

    groups = np.unique(search.asked.group[chosen])
    found = tops(search.distinct_queries.only(groups), search.distinct_targets, search.wanted, search.below)
    return search.records(found, chosen, groups).index


def recall_of(found: Index, true: Index) -> float:
    """Return the share of the true neighbours that were found; 1 where there are none."""
    there = true >= 0
    hits = (true[:, :, None] == found[:, None, :]).any(axis=2) & there
    return float(hits.sum() / there.sum()) if there.any() else 1.0
