"""Filter candidates by a quick matrix product with a known error: which rows of a pool can be among the nearest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tithe.neighbours.rows import Rows

CHUNK = 64  # columns of a chunk: at first only its maximum is looked at
COLUMNS = 4096  # of a block of products
BLOCK = 4 * 2**20  # products in a block on a CPU: as many as fit in its cache
DEVICE_BLOCK = 2**28
WORTH_BF16 = 1e10  # from this many multiplications on, bfloat16 saves more time than its additional candidates cost
MOST = 64  # candidates, and 8 more for each neighbour, above which a row is repeated more precisely


@dataclass(frozen=True)
class CoarseProduct:
    """A quick matrix product, and how far it may be off.

    Args:
        dtype: what it multiplies and returns.
        dim: how many numbers a vector has.
        slack: what lengths that are not quite 1 add to the error.
    """

    dtype: torch.dtype
    dim: int
    slack: float

    @property
    def error(self) -> float:
        """The most by which the product may differ from the cosine.

        A sum of `dim` products in float32, in any order, is off by at most dim * 2^-24 times the sum of their sizes,
        which is at most 1; units that truncate instead of rounding are off by twice that. bfloat16 rounds both vectors
        and the result by 2^-8 relative.
        """
        rounding = 0.0 if self.dtype == torch.float32 else 3 * 2.0**-8
        return 1.01 * (rounding + (self.dim + 8) * 2.0**-23) + self.slack


def product_dtypes(queries: Rows, pool: Rows) -> tuple[torch.dtype, ...]:
    """Return the dtypes to try in turn: bfloat16 before float32 where there is much to do and it is faster."""
    work = float(len(queries)) * len(pool) * queries.dim
    if work < WORTH_BF16 or not bf16_is_faster(queries.device, queries.dim):
        return (torch.float32,)
    return (torch.bfloat16, torch.float32)


def bf16_is_faster(device: str, dim: int) -> bool:
    """Measure a small product in both dtypes. The search's result does not depend on the answer."""
    if device != "cpu":
        return False  # on a GPU, looking through the products takes longer than computing them in float32

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, dim, dtype=dtype)
        began = time.perf_counter()
        torch.mm(a, a.mT)
        return time.perf_counter() - began

    seconds(torch.bfloat16)  # the first product compiles its kernel
    low, full = (min(seconds(dtype) for _ in range(8)) for dtype in (torch.bfloat16, torch.float32))
    return 2 * low < full


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32: no TF32, no bfloat16 inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def width(rows: Rows) -> int:
    """Return the columns of a block of products, a multiple of CHUNK."""
    return min(COLUMNS, -(-rows.fitting(8) // CHUNK) * CHUNK)


def height(rows: Rows, product: CoarseProduct) -> int:
    """Return the rows of a block of products.

    A bfloat16 block has twice as many, or converting the pool to bfloat16 would take most of the time.
    """
    block = (BLOCK if product.dtype == torch.float32 else 2 * BLOCK) if rows.device == "cpu" else DEVICE_BLOCK
    return min(block // width(rows), rows.fitting(8))


@dataclass
class CandidateFilter:
    """The rows of a pool that can be among the k nearest, collected block by block.

    Args:
        rows: number of queries.
        k: neighbours wanted for each.
        error: the most by which a product may be off.
        sure: a product up to this surely belongs to a cosine that is allowed.
        device: where products are.
    """

    rows: int
    k: int
    error: float
    sure: float
    device: str
    peaks: torch.Tensor = field(init=False)  # (rows, k): the k greatest chunk maxima so far that are surely allowed
    overfull: torch.Tensor = field(init=False)  # (rows,) bool: too many candidates, to be repeated more precisely
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False)  # query, row of the pool, product

    def __post_init__(self) -> None:
        self.peaks = torch.full((self.rows, self.k), -torch.inf, device=self.device)
        self.overfull = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        self.found = (none, none, none.float())

    @property
    def bar(self) -> torch.Tensor:
        """(rows,): the least product of a candidate, b - 2E: k chunk maxima from b on are k products from b on."""
        return (self.peaks[:, -1] - 2 * self.error).masked_fill(self.overfull, torch.inf)

    def add(self, products: torch.Tensor, offset: int, chunk: int) -> None:
        """Take in a block of products: (rows, columns), columns a multiple of `chunk`, -inf where to skip."""
        # Chunk i is the columns i, i + chunks, i + 2 * chunks, ...: its maximum is an elementwise one of long rows.
        tops = products.view(self.rows, chunk, -1).amax(1)  # (rows, chunks)
        chunks = tops.shape[1]
        allowed = tops.float()
        allowed = allowed.masked_fill(allowed > self.sure, -torch.inf) if self.sure < 1 else allowed
        self.peaks = torch.cat([self.peaks, allowed], 1).topk(self.k, 1).values
        hits = (tops >= self.bar[:, None]) & (tops > -torch.inf)
        self.overfull |= hits.sum(1) > self.most
        row, first = (hits & ~self.overfull[:, None]).nonzero(as_tuple=True)
        columns = first[:, None] + chunks * torch.arange(chunk, device=first.device)
        inside = products[row[:, None], columns]  # (hits, chunk)
        hit, which = ((inside >= self.bar[row, None]) & (inside > -torch.inf)).nonzero(as_tuple=True)
        new = (row[hit], offset + columns[hit, which], inside[hit, which].float())
        self.keep(*(torch.cat(both) for both in zip(self.found, new, strict=True)))

    def keep(self, row: torch.Tensor, place: torch.Tensor, product: torch.Tensor) -> None:
        """Keep what is above the current bar, of rows that are not overfull."""
        self.overfull |= torch.bincount(row[product >= self.bar[row]], minlength=self.rows) > self.most
        left = product >= self.bar[row]
        self.found = (row[left], place[left], product[left])

    def check(self, off: torch.Tensor, error: float) -> None:
        """Repeat all rows if any product is off by more than `error`: this device is less precise than it should be."""
        if (off.abs() > error).any():
            self.overfull.fill_(True)

    @property
    def most(self) -> int:
        return MOST + 8 * self.k
