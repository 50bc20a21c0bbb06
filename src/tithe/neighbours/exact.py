"""Find exact nearest neighbours a block at a time: candidates by a quick product, then their exact cosines.

A matrix product in bfloat16 or float32 is off by at most an error E that is known beforehand. Let b be a lower bound
of the k-th greatest product of a row. Then the k-th greatest cosine is at least b - E, and a row of the pool with a
cosine of b - E or more has a product of at least b - 2E. So the rows with such a product are all the candidates there
are, ties included, and their exact cosines decide. If a row has too many candidates, above all among near ties, it is
repeated with a more precise product, and in the end with exact cosines throughout.

An exact cosine is one number, whatever computes it and in whichever order. A number of at most 1 is split into a
multiple of 2^-26 and a small rest, rounded to 2^-44. Products of such multiples, and their sums below 2, fit into
float64 without rounding; so do products of multiples and rests. Therefore neither the order of a sum nor the block, the
thread count, the library or the device can change a bit. Cosines are rounded to multiples of 2^-40 (1e-12), so that
equal cosines of different vectors, which float64 arithmetic leaves some 1e-16 apart, are ties, too.

`coverage` needs one product where this needs three: it gives up the rests for speed, and its cosines are other numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from tithe.neighbours.candidate_filter import (
    CHUNK,
    CandidateFilter,
    CoarseProduct,
    full_precision,
    height,
    product_dtypes,
    width,
)
from tithe.neighbours.rows import Cosines, Index, Rows, Tops, first_in_rows, spans

COARSE = 2.0**26
FINE = 2.0**44
GRID = 2.0**40


def split(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest multiples of 2^-26 and the rests to 2^-44, float64, of the same shape."""
    wide = vectors.double()
    high = (wide * COARSE).round() / COARSE
    return high, ((wide - high) * FINE).round() / FINE


def dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return dot products of (..., n, dim) with (..., m, dim): (..., n, m) float64; dim up to 260,000."""
    high, low = split(a)
    high_b, low_b = (part.mT for part in split(b))
    return high @ high_b + (high @ low_b + low @ high_b)  # low * low is below the grid of cosines


def paired(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return dot products row by row, bit-equal to `dots`: (..., dim) twice -> (...) float64."""
    (high, low), (high_b, low_b) = split(a), split(b)
    return (high * high_b).sum(-1) + ((high * low_b).sum(-1) + (low * high_b).sum(-1))


def squares(vectors: torch.Tensor) -> torch.Tensor:
    """Return the dot product of each vector with itself, bit-equal to `dots`: (..., dim) -> (...) float64."""
    high, low = split(vectors)
    return (high * high).sum(-1) + 2 * (high * low).sum(-1)


def cosines_of(dot: torch.Tensor, square_a: torch.Tensor, square_b: torch.Tensor) -> torch.Tensor:
    """Divide dot products by lengths, rounded to 2^-40: 1 for equal vectors and never more, 0 with a zero vector."""
    area = square_a * square_b
    return ((dot / area.sqrt()).masked_fill(area == 0, 0.0) * GRID).round() / GRID


def tops(queries: Rows, pool: Rows, k: int, below: float | None = None) -> Tops:
    """Find the k nearest rows of the pool, exactly.

    Args:
        queries: what to find neighbours of; a query that is in the pool finds itself.
        pool: where to look; fastest where no two rows are equal.
        k: how many, at least 1.
        below: take only rows whose cosine is below this.
    """
    out = Tops.empty(len(queries), k)
    if not len(pool):
        return out
    todo = np.arange(len(queries))
    with full_precision():
        target = Target.of(pool, below)
        square = target.square if queries is pool else lengths(queries)
        slack = 1.01 * (stretch(square) * stretch(target.square) - 1)
        for dtype in product_dtypes(queries, pool):
            todo = quick(out, queries, target, todo, CoarseProduct(dtype, pool.dim, slack))
        for part in spans(len(todo), min(1024, queries.fitting(64))):
            out.index[todo[part]], out.cosine[todo[part]] = whole(queries.take(todo[part]), target, k)
    return out


@dataclass(frozen=True)
class Target:
    """What to find neighbours in.

    Args:
        rows: the pool.
        square: (rows,) squared lengths, float64.
        below: neighbours must have a cosine below this.
    """

    rows: Rows
    square: torch.Tensor
    below: float

    @classmethod
    def of(cls, pool: Rows, below: float | None) -> Self:
        return cls(pool, lengths(pool), math.inf if below is None else below)


def lengths(rows: Rows) -> torch.Tensor:
    """Return each row's exact squared length: (rows,) float64."""
    out = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for part in spans(len(rows), rows.fitting(256)):
        out[part] = squares(rows.take(part))  # written in place: small arrays between large ones fragment the heap
    return out


def stretch(square: torch.Tensor) -> float:
    """Return the greatest factor between a length and 1."""
    square = square[square > 0]
    return max(1.0, float(square.max().sqrt()), float(1 / square.min().sqrt())) if len(square) else 1.0


def quick(out: Tops, queries: Rows, target: Target, todo: Index, product: CoarseProduct) -> Index:
    """Fill in the rows to do, and return those that this product cannot decide."""
    left = [np.empty(0, np.int64)]
    k = out.index.shape[1]
    for part in spans(len(todo), height(queries, product)):
        rows = todo[part]
        asked = queries.take(rows)
        chosen = candidates(asked, target, k, product)
        if product.dtype != torch.float32:
            refine(asked, chosen, target, replace(product, dtype=torch.float32).error)
        row, place, cosine = settle(asked, chosen, target)
        out.index[rows], out.cosine[rows] = first_in_rows(row, place, cosine, (len(rows), k))
        left.append(rows[chosen.overfull.cpu().numpy()])
    return np.concatenate(left)


def candidates(asked: torch.Tensor, target: Target, k: int, product: CoarseProduct) -> CandidateFilter:
    """Find all rows of the pool that may be among the k nearest of each query."""
    pool = target.rows
    columns = min(width(pool), -(-len(pool) // CHUNK) * CHUNK)
    chunk = next(size for size in (64, 32, 16, 8, 4, 2, 1) if columns >= 8 * size * k or size == 1)
    found = CandidateFilter(len(asked), k, product.error, target.below - product.error, pool.device)
    buffer = torch.empty(len(asked), columns, dtype=product.dtype, device=asked.device)
    asked = asked.to(product.dtype)
    for part in spans(len(pool), columns):
        block = pool.take(part).to(product.dtype)
        if missing := columns - len(block):
            block = torch.nn.functional.pad(block, (0, 0, 0, missing))
        torch.mm(asked, block.mT, out=buffer)
        buffer[:, columns - missing :] = -torch.inf
        if target.below <= 1:
            # Drop what is not below even with its error taken off. The doubtful stay, and their cosines decide.
            certain = torch.full((1, 1), target.below + product.error, device=asked.device)
            buffer.masked_fill_(buffer > certain, -torch.inf)
        found.add(buffer, part.start, chunk)
    return found


def refine(asked: torch.Tensor, chosen: CandidateFilter, target: Target, error: float) -> None:
    """Drop candidates by their float32 products, which take a tenth of the time of exact cosines."""
    row, place, coarse = chosen.found
    product = torch.empty_like(coarse)
    for part in spans(len(row), target.rows.fitting(16)):
        product[part] = (asked[row[part]] * target.rows.take(place[part].cpu().numpy())).sum(-1)
    chosen.check(product - coarse, chosen.error + error)
    allowed = product.masked_fill(product > target.below - error, -torch.inf).double()
    best = first_in_rows(row.cpu().numpy(), place.cpu().numpy(), allowed.cpu().numpy(), (chosen.rows, chosen.k))[1]
    left = product >= (torch.from_numpy(best[:, -1]).to(asked.device) - 2 * error)[row]
    chosen.found, chosen.error = (row[left], place[left], product[left]), error


def settle(asked: torch.Tensor, chosen: CandidateFilter, target: Target) -> tuple[Index, Index, Cosines]:
    """Return the allowed candidates: queries, rows of the pool and exact cosines."""
    row, place, product = chosen.found
    cosine = torch.empty(len(row), dtype=torch.float64, device=asked.device)
    square = squares(asked)
    for part in spans(len(row), target.rows.fitting(256)):
        dot = paired(asked[row[part]], target.rows.take(place[part].cpu().numpy()))
        cosine[part] = cosines_of(dot, square[row[part]], target.square[place[part]])
    chosen.check(cosine - product, chosen.error)
    below = cosine < target.below
    return row[below].cpu().numpy(), place[below].cpu().numpy(), cosine[below].cpu().numpy()


def whole(asked: torch.Tensor, target: Target, k: int) -> tuple[Index, Cosines]:
    """Find the k nearest by exact cosines with the whole pool: (rows, k) each."""
    square = squares(asked)[:, None]
    cosine = torch.full((len(asked), k), -torch.inf, dtype=torch.float64, device=asked.device)
    index = torch.full((len(asked), k), -1, device=asked.device)
    for part in spans(len(target.rows), min(2048, target.rows.fitting(64))):
        new = cosines_of(dots(asked, target.rows.take(part)), square, target.square[part])
        new.masked_fill_(new >= target.below, -torch.inf)
        places = torch.arange(part.start, part.stop, device=asked.device).expand_as(new)
        # What was found before has lower places and comes first, so it wins ties.
        cosine, index = first_of(torch.cat([cosine, new], 1), torch.cat([index, places], 1), k)
    return index.masked_fill(cosine == -torch.inf, -1).cpu().numpy(), cosine.cpu().numpy()


def first_of(cosine: torch.Tensor, index: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k greatest of each row in order, ties by position; `topk` promises no order of ties."""
    least = cosine.topk(k, 1).values[:, -1:]
    above, equal = cosine > least, cosine == least
    keep = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = keep.nonzero()[:, 1].view(-1, k)
    cosine, order = cosine.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return cosine, index.gather(1, columns).gather(1, order)
