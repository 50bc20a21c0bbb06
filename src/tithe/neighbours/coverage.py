"""Standing for many vectors by a few: farthest first, facility location, and a walk that skips what is alike.

Similarity is the cosine, and it is computed without rounding. Rows are made as long as 1 and put on a grid of 2^-26,
which moves a cosine by less than 1e-6; products are then multiples of 2^-52, and whatever part of them is added up
stays below 2, so float64 holds every intermediate sum. Hence a similarity depends on its two vectors alone: not on the
block or place they stand in, nor on threads or the BLAS. Equal vectors tie exactly, and a tie goes to the lowest row.
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
SAME = 1 - 2.0**-20  # a cosine from here on is that of equal vectors; the grid leaves their length a little off 1
TILE = 2**18  # similarities held at once: 2 MB, so that they stay in the cache
FIRST_LOOK = 8  # candidates that lazy greedy evaluates at once, doubled until the best is found


def exact(vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Rows of length 1 on the grid: (rows, dim) float64.

    A row of zeros, for a text of which nothing is known, becomes one that is like its kind and like nothing else: a
    column of its own is added for it.
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
    """The row most similar to the mean of all; `rows` as `exact` gives them, at least one."""
    mean = _on_grid(rows.sum(axis=0) / len(rows))
    return int(np.argmax(rows @ mean))


def farthest_first(vectors: npt.NDArray[np.floating], first: int | None = None, *, ahead: int = 4096) -> Iterator[int]:
    """Rows in the order of k-centre greedy: next is always the row least similar to all that came before.

    Only the `ahead` least similar rows are measured against every new one. A similarity to the nearest can but grow,
    so as long as one of them is below what the best of the others was, no other can be next; then all are measured
    again, against several at once. The order is that of measuring all every time.

    Args:
        vectors: (rows, dim), each of length 1, or zeros.
        first: where to start; None is the row most similar to the mean.
        ahead: rows looked at between two rounds; changes the time alone.
    """
    rows = exact(vectors)
    if not len(rows):
        return
    nearest = np.full(len(rows), -np.inf)  # of each row, to what came before; +inf for what came before
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
    """The next rows, all out of `front`, for as long as none of the others can come before them."""
    here, vectors = nearest[front], rows[front]
    while True:
        place = int(np.argmin(here))  # of equal ones the first, and `front` is in order
        if here[place] == np.inf or (here[place], front[place]) > bar:
            return
        yield int(front[place])
        here = np.maximum(here, np.minimum(vectors @ vectors[place], SAME))
        here[place] = np.inf


def unlike(vectors: npt.NDArray[np.floating], threshold: float, *, block: int = 512) -> Iterator[bool]:
    """Row by row: is its cosine with every earlier row for which this said yes below the threshold?

    Args:
        vectors: (rows, dim), each of length 1 or zeros, in the order of the walk.
        threshold: a cosine; at the threshold, to within 1e-6, is too like.
        block: rows looked at together; changes the time alone.
    """
    rows = exact(vectors)
    bar = threshold - (1 - SAME)
    kept: list[int] = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        likest = _most_similar(part, rows, kept)
        inside = part @ part.T  # (block, block)
        here: list[int] = []
        for place in range(len(part)):
            new = bool(likest[place] < bar and np.all(inside[place, here] < bar))
            if new:
                here.append(place)
                kept.append(start + place)
            yield new


def facility_location(
    vectors: npt.NDArray[np.floating], bonus: FloatArray | None = None, *, tile: int = TILE
) -> Iterator[int]:
    """Rows in the order in which greedy adds them, for sum_i max_{j in S} max(0, cos(i, j)) + sum_{j in S} b_j.

    Evaluated lazily (Minoux 1978): what a row adds can only shrink while others are added, so its last value is a
    bound, and only rows whose bound is at the top are evaluated again. Equal to evaluating all of them at every step,
    ties to the lowest row included, because all sums are exact.

    Args:
        vectors: (rows, dim), each of length 1, or zeros.
        bonus: (rows,) what a row adds by itself, 0 or more, in examples covered.
        tile: similarities held at once; changes time and memory alone.
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
    """How well each row is covered so far, and what each row would add when it was last evaluated.

    Values are on a grid coarse enough that a sum over all rows is exact. Therefore a value may be brought up to date by
    what the changes since then took from it, and is the same number as a sum made anew.
    """

    def __init__(self, rows: FloatArray, bonus: FloatArray, tile: int) -> None:
        assert len(bonus) == len(rows) and np.all(bonus >= 0), "a bonus takes nothing away"
        most = len(rows) + float(bonus.max(initial=0)) + 1
        bits = 51 - ceil(log2(most))
        self._rounder = 1.5 * 2.0 ** (52 - bits)  # adding and subtracting it rounds to multiples of 2^-bits
        self.rows, self.tile = rows, tile
        self.bonus = self._round(bonus.astype(np.float64))
        self.best = np.zeros(len(rows))  # of each row, its similarity to the most similar one added
        self.gain = self._first()
        self.seen = np.zeros(len(rows), dtype=np.int64)  # changes of `best` that `gain` has in it
        self.changes = 0  # all there were; the log below has the last of them: which row, from what, to what
        self.log: list[npt.NDArray[Any]] = [np.empty(0, dtype=np.intp), np.empty(0), np.empty(0)]

    def fresh(self, row: int) -> bool:
        return bool(self.seen[row] == self.changes or self.gain[row] == self.bonus[row])  # no less than its bonus

    def evaluate(self, chosen: npt.NDArray[np.intp]) -> FloatArray:
        """(chosen,) what each would add now."""
        owed = self.changes - self.seen[chosen]
        scale = np.frexp(np.where(owed * 2 > len(self.rows), 0, owed))[1]  # 0: cheaper made anew
        for each in np.unique(scale):
            group, behind = chosen[scale == each], owed[scale == each]
            self.gain[group] = self._updated(group, behind) if each else self._anew(group)
        self.seen[chosen] = self.changes
        return self.gain[chosen]

    def add(self, row: int) -> None:
        likeness = self._round(self.rows @ self.rows[row])
        better = np.flatnonzero(likeness > self.best)
        news = better, self.best[better], likeness[better]
        self.log = [np.concatenate(pair)[-len(self.rows) :] for pair in zip(self.log, news, strict=True)]
        self.best[better] = likeness[better]
        self.changes += len(better)

    def _first(self) -> FloatArray:
        """(rows,) what each row adds to nothing; every pair is looked at once, since likeness has no direction."""
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
        """By the last `owed` changes: one that lifts a row from a to b takes min(max(s, a), b) - a from likeness s."""
        out, vectors, most = self.gain[chosen], self.rows[chosen], int(owed.max())
        which, before, after = (part[len(part) - most :] for part in self.log)
        width = max(1, self.tile // len(chosen))
        for start in range(0, most, width):
            across = slice(start, start + width)
            part = self._round(vectors @ self.rows[which[across]].T)  # (chosen, width)
            np.clip(part, before[across], after[across], out=part)
            part -= before[across]
            part[np.arange(most)[across] < (most - owed)[:, None]] = 0  # these were in it already
            out -= part.sum(axis=1)
        return out

    def _round(self, values: FloatArray) -> FloatArray:
        values += self._rounder
        values -= self._rounder
        return values


def _most_similar(rows: FloatArray, others: FloatArray, which: list[int]) -> FloatArray:
    """(rows,) cosine of each with the most similar of `others[which]`; -inf where that is nothing."""
    out = np.full(len(rows), -np.inf)
    side = int(TILE**0.5)
    for left in range(0, len(which), side):
        across = others[which[left : left + side]].T
        for top in range(0, len(rows), side):
            down = slice(top, top + side)
            np.maximum(out[down], (rows[down] @ across).max(axis=1), out=out[down])
    return out
