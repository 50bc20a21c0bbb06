"""Choose a few vectors that represent many: farthest first, facility location, and a walk that skips similar ones.

Similarity is the cosine, computed without rounding. Rows are scaled to length 1 and rounded to a grid of 2^-26, which
moves a cosine by less than 1e-6. Products are then multiples of 2^-52, and any partial sum of them stays below 2, so
float64 holds every intermediate sum. Hence a similarity depends on its two vectors alone: not on their block or
position, on threads or on the BLAS. Equal vectors tie exactly, and a tie goes to the lowest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import ceil, log2
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.records import FloatArray

GRID = 2.0**26
SAME = 1 - 2.0**-20  # vectors with this cosine or more count as equal; the grid leaves lengths a little off 1
TILE = 2**18  # similarities held at once: 2 MB, so that they stay in the cache
FIRST_LOOK = 8  # candidates that lazy greedy evaluates at once, doubled until the best is found


def exact(vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Scale rows to length 1 and round them to the grid: (rows, dim) float64.

    Zero rows, of texts that the encoder knows nothing about, get 1 in an additional column: they are similar to each
    other and to nothing else.
    """
    rows = _on_grid(np.array(vectors, dtype=np.float64))
    lengths = np.sqrt(np.einsum("rd,rd->r", rows, rows))
    unknown = lengths == 0
    assert np.all((np.abs(lengths - 1) < 0.1) | unknown), "sums of rows that are much longer than 1 would be rounded"
    rows /= np.where(unknown, 1, lengths)[:, None]
    _on_grid(rows)
    return np.column_stack((rows, unknown)) if unknown.any() else rows


def _on_grid(values: FloatArray) -> FloatArray:
    values *= GRID
    np.rint(values, out=values)
    values /= GRID
    return values


def central(rows: FloatArray) -> int:
    """Return the row most similar to the mean; `rows` come from `exact`, at least one."""
    mean = _on_grid(rows.sum(axis=0) / len(rows))
    return int(np.argmax(rows @ mean))


def farthest_first(vectors: npt.NDArray[np.floating], first: int | None = None, *, ahead: int = 4096) -> Iterator[int]:
    """Yield rows in the order of k-centre greedy: next is always the row least similar to all rows before it.

    Only the `ahead` least similar rows are compared with every new one. A row's similarity to its nearest predecessor
    can only grow, so no other row can be next while one of the front is below the others' old minimum. After that, all
    rows are compared with the new ones at once. The order is the same as if all were compared every time.

    Args:
        vectors: (rows, dim), each of length 1, or zeros.
        first: where to start; None is the row most similar to the mean.
        ahead: rows in the front; changes only the time.
    """
    rows = exact(vectors)
    if not len(rows):
        return
    nearest = np.full(len(rows), -np.inf)  # similarity of each row to its nearest predecessor; +inf for predecessors
    new = [central(rows) if first is None else first]
    yield new[0]
    while True:
        nearest = np.maximum(nearest, np.minimum(_most_similar(rows, rows, new), SAME))
        nearest[new] = np.inf
        order = np.argsort(nearest, kind="stable")
        others = order[ahead : ahead + 1]
        bar = (nearest[others[0]], others[0]) if len(others) else (np.inf, len(rows))
        new = []
        for row in _front(rows, nearest, np.sort(order[:ahead]), bar):
            new.append(row)
            yield row
        if not new:
            return


def _front(rows: FloatArray, nearest: FloatArray, front: npt.NDArray[np.intp], bar: tuple[float, int]) -> Iterator[int]:
    """Yield the next rows, all from `front`, until a row outside of it could come first.

    Args:
        rows: all rows.
        nearest: (rows,) similarity of each to its nearest predecessor.
        front: the rows to take from, ascending.
        bar: similarity and row of the least similar one outside.
    """
    here, vectors = nearest[front], rows[front]
    while True:
        place = int(np.argmin(here))  # ties go to the first, which is the lowest row: `front` is ascending
        if here[place] == np.inf or (here[place], front[place]) > bar:
            return
        yield int(front[place])
        here = np.maximum(here, np.minimum(vectors @ vectors[place], SAME))
        here[place] = np.inf


def unlike(vectors: npt.NDArray[np.floating], threshold: float, *, block: int = 512) -> Iterator[bool]:
    """Yield for each row whether to keep it: its cosine with every kept row before it is below the threshold.

    Args:
        vectors: (rows, dim), each of length 1 or zeros, in the order of the walk.
        threshold: a cosine; at the threshold, to within 1e-6, is too similar.
        block: rows compared together; changes only the time.
    """
    rows = exact(vectors)
    bar = threshold - (1 - SAME)
    kept: list[int] = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        closest = _most_similar(part, rows, kept)
        inside = part @ part.T  # (block, block)
        here: list[int] = []
        for place in range(len(part)):
            new = bool(closest[place] < bar and np.all(inside[place, here] < bar))
            if new:
                here.append(place)
                kept.append(start + place)
            yield new


def facility_location(
    vectors: npt.NDArray[np.floating], bonus: FloatArray | None = None, *, tile: int = TILE
) -> Iterator[int]:
    """Yield rows as greedy adds them for f(S) = sum_i max_{j in S} max(0, cos(i, j)) + sum_{j in S} b_j.

    Evaluated lazily (Minoux 1978): the gain of a row can only shrink while others are added, so its last value is an
    upper bound, and only the rows with the greatest bounds are evaluated again. All sums are exact, so the order equals
    that of evaluating all rows at every step, with ties going to the lowest row.

    Args:
        vectors: (rows, dim), each of length 1, or zeros.
        bonus: (rows,) b_j, what a row adds by itself, 0 or more; 1 is as much as an example covered whole.
        tile: similarities held at once; changes only time and memory.
    """
    cover = _Cover(exact(vectors), np.zeros(len(vectors)) if bonus is None else bonus, tile)
    heap = [(-gain, row) for row, gain in enumerate(cover.gain.tolist())]
    heapify(heap)
    for _ in range(len(heap)):
        look = FIRST_LOOK
        while not cover.fresh(heap[0][1]):
            front = [heappop(heap)[1] for _ in range(min(look, len(heap)))]
            for row, gain in zip(front, cover.evaluate(np.array(front)).tolist(), strict=True):
                heappush(heap, (-gain, row))
            look *= 2
        row = heappop(heap)[1]
        yield row
        cover.add(row)


class _Cover:
    """How well each row is covered so far, and the gain of each row when it was last evaluated.

    Values are on a grid coarse enough that a sum over all rows is exact. Therefore a gain may be updated by subtracting
    what later changes took from it, and is the same number as a new sum.
    """

    def __init__(self, rows: FloatArray, bonus: FloatArray, tile: int) -> None:
        assert len(bonus) == len(rows) and np.all(bonus >= 0), "a bonus is never negative"
        most = len(rows) + float(bonus.max(initial=0)) + 1
        bits = 51 - ceil(log2(most))
        self._rounder = 1.5 * 2.0 ** (52 - bits)  # adding and subtracting it rounds to multiples of 2^-bits
        self.rows, self.tile = rows, tile
        self.bonus = self._round(bonus.astype(np.float64))
        self.best = np.zeros(len(rows))  # similarity of each row to the most similar one added so far
        self.gain = self._first()
        self.seen = np.zeros(len(rows), dtype=np.int64)  # how many changes of `best` each gain accounts for
        self.changes = 0  # number of changes so far; the log holds the latest: which row, old value, new value
        self.log: list[npt.NDArray[Any]] = [np.empty(0, dtype=np.intp), np.empty(0), np.empty(0)]

    def fresh(self, row: int) -> bool:
        return bool(self.seen[row] == self.changes or self.gain[row] == self.bonus[row])  # no gain is below its bonus

    def evaluate(self, chosen: npt.NDArray[np.intp]) -> FloatArray:
        """Return the current gain of each: (chosen,)."""
        owed = self.changes - self.seen[chosen]
        scale = np.frexp(np.where(owed * 2 > len(self.rows), 0, owed))[1]  # 0: a new sum is cheaper
        # Rows that are equally far behind, to a factor of two, are updated together.
        for each in np.unique(scale):
            group, behind = chosen[scale == each], owed[scale == each]
            self.gain[group] = self._updated(group, behind) if each else self._anew(group)
        self.seen[chosen] = self.changes
        return self.gain[chosen]

    def add(self, row: int) -> None:
        similarity = self._round(self.rows @ self.rows[row])
        better = np.flatnonzero(similarity > self.best)
        news = better, self.best[better], similarity[better]
        self.log = [np.concatenate(pair)[-len(self.rows) :] for pair in zip(self.log, news, strict=True)]
        self.best[better] = similarity[better]
        self.changes += len(better)

    def _first(self) -> FloatArray:
        """Return the gain of each row alone: (rows,). Cosines are symmetric, so each pair is computed once."""
        out, side = self.bonus.copy(), max(1, int(self.tile**0.5))
        for top in range(0, len(out), side):
            for left in range(top, len(out), side):
                down, across = slice(top, top + side), slice(left, left + side)
                part = self._round(self.rows[down] @ self.rows[across].T)
                np.maximum(part, 0, out=part)
                out[down] += part.sum(axis=1)
                if left > top:
                    out[across] += part.sum(axis=0)
        return out

    def _anew(self, chosen: npt.NDArray[np.intp]) -> FloatArray:
        out, vectors = self.bonus[chosen], self.rows[chosen]
        width = max(1, self.tile // len(chosen))
        for start in range(0, len(self.rows), width):
            across = slice(start, start + width)
            part = self._round(vectors @ self.rows[across].T)  # (chosen, width)
            part -= self.best[across]
            out += np.maximum(part, 0, out=part).sum(axis=1)
        return out

    def _updated(self, chosen: npt.NDArray[np.intp], owed: npt.NDArray[np.int64]) -> FloatArray:
        """Subtract what the last `owed` changes took: raising a row's best from a to b takes min(max(s, a), b) - a.

        Here s is the similarity of the chosen row with the row whose best was raised.
        """
        out, vectors, most = self.gain[chosen], self.rows[chosen], int(owed.max())
        which, before, after = (part[len(part) - most :] for part in self.log)
        width = max(1, self.tile // len(chosen))
        for start in range(0, most, width):
            across = slice(start, start + width)
            part = self._round(vectors @ self.rows[which[across]].T)  # (chosen, width)
            np.clip(part, before[across], after[across], out=part)
            part -= before[across]
            part[np.arange(most)[across] < (most - owed)[:, None]] = 0  # already accounted for
            out -= part.sum(axis=1)
        return out

    def _round(self, values: FloatArray) -> FloatArray:
        values += self._rounder
        values -= self._rounder
        return values


def _most_similar(rows: FloatArray, others: FloatArray, which: list[int]) -> FloatArray:
    """Return each row's cosine with the most similar of `others[which]`: (rows,), -inf if there is none."""
    out = np.full(len(rows), -np.inf)
    side = int(TILE**0.5)
    for left in range(0, len(which), side):
        across = others[which[left : left + side]].T
        for top in range(0, len(rows), side):
            down = slice(top, top + side)
            np.maximum(out[down], (rows[down] @ across).max(axis=1), out=out[down])
    return out
