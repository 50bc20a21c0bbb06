"""Exact nearest neighbours a block at a time: candidates by a quick product, then their exact cosines.

A product of matrices in bfloat16 or float32 is off by at most an error E that is known beforehand. Let b be a bound
below the k-th greatest product of a row. The k-th greatest cosine is then at least b - E, and a cosine of b - E has a
product of at least b - 2E: all rows of the pool from there on are candidates, none of the k nearest nor of those tied
with them can be another, and the cosines of the candidates (`cosine`) decide. Where there are too many candidates,
among near ties above all, the row is repeated with a more precise product, in the end with exact cosines throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from tithe.neighbours.cosine import cosines_of, dots, paired, squares
from tithe.neighbours.products import CHUNK, Product, full_precision, height, roads, width
from tithe.neighbours.rows import Index, Rows, first_in_rows, spans
from tithe.neighbours.sieve import Sieve

Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tops:
    """The pool's rows of greatest cosine to each query, the greatest first, ties by the lowest row.

    Args:
        index: (queries, k) places in the pool, -1 where there are fewer.
        cosine: (queries, k), -inf there.
    """

    index: Index
    cosine: Cosines

    @classmethod
    def empty(cls, rows: int, k: int) -> Tops:
        return cls(np.full((rows, k), -1, np.int64), np.full((rows, k), -np.inf))


def tops(queries: Rows, pool: Rows, k: int, below: float | None = None) -> Tops:
    """The k nearest in the pool, exactly.

    Args:
        queries: what to find neighbours of; a query that is in the pool finds itself.
        pool: what to find them in; fastest where no two rows are equal.
        k: how many, at least 1.
        below: only those whose cosine is below it.
    """
    out = Tops.empty(len(queries), k)
    if not len(pool):
        return out
    todo = np.arange(len(queries))
    with full_precision():
        target = Target.of(pool, below)
        square = target.square if queries is pool else lengths(queries)
        slack = 1.01 * (stretch(square) * stretch(target.square) - 1)
        for dtype in roads(queries, pool):
            todo = quick(out, queries, target, todo, Product(dtype, pool.dim, slack))
        for part in spans(len(todo), min(1024, queries.fitting(64))):
            out.index[todo[part]], out.cosine[todo[part]] = whole(queries.take(todo[part]), target, k)
    return out


@dataclass(frozen=True)
class Target:
    """What to find neighbours in.

    Args:
        rows: the pool.
        square: (rows,) squared lengths, float64.
        below: only those whose cosine with the query is below it.
    """

    rows: Rows
    square: torch.Tensor
    below: float

    @classmethod
    def of(cls, pool: Rows, below: float | None) -> Self:
        return cls(pool, lengths(pool), math.inf if below is None else below)


def lengths(rows: Rows) -> torch.Tensor:
    """Each row's squared length, to the bit: (rows,) float64."""
    out = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for part in spans(len(rows), rows.fitting(256)):
        out[part] = squares(rows.take(part))  # in its place: small results between large ones would split the heap
    return out


def stretch(square: torch.Tensor) -> float:
    """The greatest factor between a length and 1."""
    square = square[square > 0]
    return max(1.0, float(square.max().sqrt()), float(1 / square.min().sqrt())) if len(square) else 1.0


def quick(out: Tops, queries: Rows, target: Target, todo: Index, product: Product) -> Index:
    """Fill in the rows to do; those that this product cannot decide come back."""
    left = [np.empty(0, np.int64)]
    k = out.index.shape[1]
    for part in spans(len(todo), height(queries, product)):
        rows = todo[part]
        asked = queries.take(rows)
        sieve = candidates(asked, target, k, product)
        if product.dtype != torch.float32:
            refine(asked, sieve, target, replace(product, dtype=torch.float32).error)
        row, place, cosine = settle(asked, sieve, target)
        out.index[rows], out.cosine[rows] = first_in_rows(row, place, cosine, (len(rows), k))
        left.append(rows[sieve.crowded.cpu().numpy()])
    return np.concatenate(left)


def candidates(asked: torch.Tensor, target: Target, k: int, product: Product) -> Sieve:
    """All rows of the pool that may be among the k nearest of each query."""
    pool = target.rows
    columns = min(width(pool), -(-len(pool) // CHUNK) * CHUNK)
    chunk = next(size for size in (64, 32, 16, 8, 4, 2, 1) if columns >= 8 * size * k or size == 1)
    sieve = Sieve(len(asked), k, product.error, target.below - product.error, pool.device)
    buffer = torch.empty(len(asked), columns, dtype=product.dtype, device=asked.device)
    asked = asked.to(product.dtype)
    for part in spans(len(pool), columns):
        block = pool.take(part).to(product.dtype)
        if missing := columns - len(block):
            block = torch.nn.functional.pad(block, (0, 0, 0, missing))
        torch.mm(asked, block.mT, out=buffer)
        buffer[:, columns - missing :] = -torch.inf
        if target.below <= 1:
            # Surely not below: its error taken off, it still is not. Those in doubt stay and are measured.
            certain = torch.full((1, 1), target.below + product.error, device=asked.device)
            buffer.masked_fill_(buffer > certain, -torch.inf)
        sieve.add(buffer, part.start, chunk)
    return sieve


def refine(asked: torch.Tensor, sieve: Sieve, target: Target, error: float) -> None:
    """Fewer candidates by their products in float32, which take a tenth of the time of an exact cosine."""
    row, place, coarse = sieve.found
    product = torch.empty_like(coarse)
    for part in spans(len(row), target.rows.fitting(16)):
        product[part] = (asked[row[part]] * target.rows.take(place[part].cpu().numpy())).sum(-1)
    sieve.check(product - coarse, sieve.error + error)
    allowed = product.masked_fill(product > target.below - error, -torch.inf).double()
    best = first_in_rows(row.cpu().numpy(), place.cpu().numpy(), allowed.cpu().numpy(), (sieve.rows, sieve.k))[1]
    left = product >= (torch.from_numpy(best[:, -1]).to(asked.device) - 2 * error)[row]
    sieve.found, sieve.error = (row[left], place[left], product[left]), error


def settle(asked: torch.Tensor, sieve: Sieve, target: Target) -> tuple[Index, Index, Cosines]:
    """The allowed candidates: queries, places in the pool and exact cosines."""
    row, place, product = sieve.found
    cosine = torch.empty(len(row), dtype=torch.float64, device=asked.device)
    square = squares(asked)
    for part in spans(len(row), target.rows.fitting(256)):
        dot = paired(asked[row[part]], target.rows.take(place[part].cpu().numpy()))
        cosine[part] = cosines_of(dot, square[row[part]], target.square[place[part]])
    sieve.check(cosine - product, sieve.error)
    below = cosine < target.below
    return row[below].cpu().numpy(), place[below].cpu().numpy(), cosine[below].cpu().numpy()


def whole(asked: torch.Tensor, target: Target, k: int) -> tuple[Index, Cosines]:
    """The k nearest by exact cosines with the whole pool: (rows, k) each."""
    square = squares(asked)[:, None]
    cosine = torch.full((len(asked), k), -torch.inf, dtype=torch.float64, device=asked.device)
    index = torch.full((len(asked), k), -1, device=asked.device)
    for part in spans(len(target.rows), min(2048, target.rows.fitting(64))):
        new = cosines_of(dots(asked, target.rows.take(part)), square, target.square[part])
        new.masked_fill_(new >= target.below, -torch.inf)
        places = torch.arange(part.start, part.stop, device=asked.device).expand_as(new)
        # What was found before has lower places, and so wins ties.
        cosine, index = first_of(torch.cat([cosine, new], 1), torch.cat([index, places], 1), k)
    return index.masked_fill(cosine == -torch.inf, -1).cpu().numpy(), cosine.cpu().numpy()


def first_of(cosine: torch.Tensor, index: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest of each row in order; among equal ones those that stand first. `topk` promises no such thing."""
    least = cosine.topk(k, 1).values[:, -1:]
    above, equal = cosine > least, cosine == least
    keep = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = keep.nonzero()[:, 1].view(-1, k)
    cosine, order = cosine.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return cosine, index.gather(1, columns).gather(1, order)
