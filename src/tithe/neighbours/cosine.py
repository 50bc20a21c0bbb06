"""The cosine of two vectors as one number, whatever computes it and in whichever order.

A number of at most 1 is a multiple of 2^-26 and a small rest, taken to 2^-44. Products of such multiples, and sums of
them below 2, are float64 numbers without any rounding; so are those of multiples and rests. Neither the order of a sum
nor the block, the thread count, the library or the device can then change a bit. Cosines are
rounded to multiples of 2^-40 (1e-12), so that equal cosines of different vectors, which float64 arithmetic leaves some
1e-16 apart, are ties too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tithe.neighbours.rows import Rows, spans

if TYPE_CHECKING:
    import torch

COARSE = 2.0**26
FINE = 2.0**44
GRID = 2.0**40


def split(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiples of 2^-26 and the rests to 2^-44, float64, of the same shape."""
    wide = vectors.double()
    high = (wide * COARSE).round() / COARSE
    return high, ((wide - high) * FINE).round() / FINE


def dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products of (..., n, dim) with (..., m, dim): (..., n, m) float64; dim up to 260,000."""
    high, low = split(a)
    high_b, low_b = (part.mT for part in split(b))
    return high @ high_b + (high @ low_b + low @ high_b)


def paired(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products row by row, to the bit as in `dots`: (..., dim) twice -> (...) float64."""
    (high, low), (high_b, low_b) = split(a), split(b)
    return (high * high_b).sum(-1) + ((high * low_b).sum(-1) + (low * high_b).sum(-1))


def squares(vectors: torch.Tensor) -> torch.Tensor:
    """Each vector with itself, to the bit as in `dots`: (..., dim) -> (...) float64."""
    high, low = split(vectors)
    return (high * high).sum(-1) + 2 * (high * low).sum(-1)


def cosines_of(dot: torch.Tensor, square_a: torch.Tensor, square_b: torch.Tensor) -> torch.Tensor:
    """Dot products over lengths, to 2^-40: 1 for equal vectors and never more, 0 with a vector of zeros."""
    area = square_a * square_b
    return ((dot / area.sqrt()).masked_fill(area == 0, 0.0) * GRID).round() / GRID


def cosines(vectors: npt.NDArray[np.float32], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The cosine of each pair.

    Args:
        vectors: (n, dim), each of length 1, or zeros.
        pairs: (pairs, 2) rows of `vectors`.

    Returns:
        (pairs,), the same numbers as `nearest` gives.
    """
    rows = Rows.of(vectors)
    out = np.empty(len(pairs), np.float32)
    for part in spans(len(pairs), rows.fitting(64)):
        one, other = pairs[part, 0], pairs[part, 1]
        a, b = rows.take(one), rows.take(other)
        out[part] = cosines_of(paired(a, b), squares(a), squares(b)).cpu().numpy()
    return out


def similarity_blocks(
    vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None = None, *, device: str = "cpu"
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Cosines of some vectors with all, a block of columns at a time, for what must look at every pair.

    Args:
        vectors: (n, dim), each of length 1, or zeros.
        rows: which vectors to compare with all; None for all of them. The caller bounds `rows` x 2,048 numbers.
        device: where to multiply.

    Yields:
        The columns as a slice of 0..n, and (rows, columns) cosines: the same numbers whatever the blocks.
    """
    everything = Rows.of(vectors, device)
    chosen = everything.take(np.arange(len(vectors)) if rows is None else rows)
    square = squares(chosen)[:, None]
    for part in spans(len(vectors), min(2048, everything.fitting(64))):
        block = everything.take(part)
        yield part, cosines_of(dots(chosen, block), square, squares(block)).float().cpu().numpy()
