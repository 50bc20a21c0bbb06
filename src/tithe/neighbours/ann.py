"""Approximate nearest neighbours for more vectors than an exact search is wanted for; measured against one."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tithe.errors import MissingExtraError, SettingsError
from tithe.extras import install_hint
from tithe.neighbours.cosine import cosines_of, paired, squares
from tithe.neighbours.exact import Tops, tops
from tithe.neighbours.found import Measured, Neighbours, Search
from tithe.neighbours.rows import Index, Rows, first_in_rows, spans

SPARE = 8  # candidates beyond those wanted: their order is that of rounded products
TRAIN = 64  # vectors for each list of an inverted file to be learned from


@dataclass(frozen=True)
class Ann:
    """Settings of an approximate search with faiss.

    Args:
        kind: `ivf`, an inverted file, or `hnsw`, a graph: more memory and time to build, often better recall.
        effort: lists looked into (ivf) or the search's breadth (hnsw); None for a 64th of the lists, or 128.
        most: candidates looked at for one query at most, where near ones are passed over.
        sample: queries of which the recall is measured against exact search.
        seed: of the sample and of the lists.
    """

    kind: Literal["ivf", "hnsw"] = "ivf"
    effort: int | None = None
    most: int = 1024
    sample: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("ivf", "hnsw"):
            raise SettingsError(f"there is no approximate search `{self.kind}`", hint="there is: hnsw, ivf")
        if min(1 if self.effort is None else self.effort, self.most, self.sample) < 1:
            raise SettingsError("effort, candidates and sample of an approximate search must be at least 1")


def approximate(ask: Search, ann: Ann) -> Neighbours:
    """Answer a search by an index over the pool's distinct vectors; cosines, ties and order are exact.

    Lists of an inverted file are learned from a sample by k-means on as many threads as there are, so a neighbour
    that is missed on one machine may be found on another.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    pool = ask.distinct_targets
    queries = pool if ask.own else ask.distinct_queries
    index, effort = build(pool, ann)
    found = ask.records(look_up(index, queries, pool, ask, ann.most))
    chosen = np.random.default_rng(ann.seed).permutation(len(ask.queries))[: ann.sample]
    recall = recall_of(found.index[chosen], true_neighbours(ask, chosen))
    short = int((found.index[:, -1] < 0).sum()) if len(ask.targets) - ask.own >= ask.k else 0
    return replace(found, ann=Measured(ann.kind, effort, recall, len(chosen), short))


def faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtraError(
            "an approximate search needs the package `faiss`", hint=f"{install_hint('ann')}, or `method='exact'`"
        ) from None


def build(pool: Rows, ann: Ann) -> tuple[Any, int]:
    """An index of the pool by inner product, and its effort."""
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


def block(rows: Rows, part: slice | Index) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = rows.take(part).cpu().numpy()
    return array


def look_up(index: Any, queries: Rows, pool: Rows, ask: Search, most: int) -> Tops:
    """The nearest that the index finds; where too many are passed over, four times as many are looked at, and so on."""
    out = Tops.empty(len(queries), ask.wanted)
    todo, look = np.arange(len(queries)), ask.wanted + SPARE
    while len(todo):
        look = min(look, len(pool))
        for part in spans(len(todo), max(1, queries.fitting(32) // look)):
            rows = todo[part]
            place = index.search(block(queries, rows), look)[1]
            out.index[rows], out.cosine[rows] = ordered(queries.only(rows), pool, place, ask)
        if ask.below is None or look >= min(most, len(pool)):
            break
        todo, look = todo[out.index[todo, ask.k - 1] < 0], min(4 * look, most)
    return out


def ordered(queries: Rows, pool: Rows, place: Index, ask: Search) -> tuple[Index, npt.NDArray[np.float64]]:
    """What the index found by exact cosine, ties by the lowest row: (rows, wanted) places and cosines."""
    row, column = np.nonzero(place >= 0)
    at = place[row, column]
    a, b = queries.take(row), pool.take(at)
    cosine = cosines_of(paired(a, b), squares(a), squares(b)).cpu().numpy()
    allowed = np.flatnonzero(cosine < (np.inf if ask.below is None else ask.below))
    return first_in_rows(row[allowed], at[allowed], cosine[allowed], (len(place), ask.wanted))


def true_neighbours(ask: Search, chosen: Index) -> Index:
    """The exact neighbours of some queries."""
    groups = np.unique(ask.asked.group[chosen])
    found = tops(ask.distinct_queries.only(groups), ask.distinct_targets, ask.wanted, ask.below)
    return ask.records(found, chosen, groups).index


def recall_of(found: Index, true: Index) -> float:
    """Share of the true neighbours that are among those found; 1 where there is none to find."""
    there = true >= 0
    hits = (true[:, :, None] == found[:, None, :]).any(axis=2) & there
    return float(hits.sum() / there.sum()) if there.any() else 1.0
