"""Quick products of matrices: how precise, how fast, in blocks of which size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tithe.neighbours.rows import Rows

CHUNK = 64  # columns of which the greatest alone is looked at first
COLUMNS = 4096  # of a block of products
BLOCK = 4 * 2**20  # products in a block on a CPU: what its cache holds
DEVICE_BLOCK = 2**28
WORTH_BF16 = 1e10  # products from which bfloat16 gains more than measuring more candidates costs


@dataclass(frozen=True)
class Product:
    """A quick product of matrices, and how far it may be off.

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
        """The most that it differs from the cosine.

        A sum of `dim` products in float32, in any order, is off by dim * 2^-24 of the sum of their sizes, which is 1
        at most; units that cut instead of rounding are off by twice that. bfloat16 rounds either vector and the
        result by 2^-8 of themselves.
        """
        rounding = 0.0 if self.dtype == torch.float32 else 3 * 2.0**-8
        return 1.01 * (rounding + (self.dim + 8) * 2.0**-23) + self.slack


def roads(queries: Rows, pool: Rows) -> tuple[torch.dtype, ...]:
    """Quick products to try in turn: bfloat16 before float32 where there is much to do and it is faster."""
    work = float(len(queries)) * len(pool) * queries.dim
    if work < WORTH_BF16 or not bf16_is_faster(queries.device, queries.dim):
        return (torch.float32,)
    return (torch.bfloat16, torch.float32)


def bf16_is_faster(device: str, dim: int) -> bool:
    """Measured on a small product. What is found does not depend on it."""
    if device != "cpu":
        return False  # float32 products are faster than looking through them

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, dim, dtype=dtype)
        began = time.perf_counter()
        torch.mm(a, a.mT)
        return time.perf_counter() - began

    seconds(torch.bfloat16)  # the first product makes its kernel
    low, full = (min(seconds(dtype) for _ in range(8)) for dtype in (torch.bfloat16, torch.float32))
    return 2 * low < full


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products that are float32 within: no TF32, no bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def width(rows: Rows) -> int:
    """Columns of a block of products, a multiple of CHUNK."""
    return min(COLUMNS, -(-rows.fitting(8) // CHUNK) * CHUNK)


def height(rows: Rows, product: Product) -> int:
    """Rows of a block of products; bfloat16 takes more, or turning the pool into it would cost most of the time."""
    block = (BLOCK if product.dtype == torch.float32 else 2 * BLOCK) if rows.device == "cpu" else DEVICE_BLOCK
    return min(block // width(rows), rows.fitting(8))
