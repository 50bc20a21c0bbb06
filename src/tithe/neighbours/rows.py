"""Read vectors in blocks: check them, find equal ones, and order what a search found in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Cosines = npt.NDArray[np.float64]

BLOCK_BYTES = 32 * 2**20  # of vectors held at once, beside the whole matrix
DEVICE_BLOCK_BYTES = 512 * 2**20
UNIT = 1e-3  # how far a length may be from 1


def spans(n: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover 0..n."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def choose_device(device: str) -> str:
    """Resolve `auto` to CUDA where available. Apple's GPU has no float64, so `mps` becomes the CPU."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(f"device `{device}` is not available", hint="`auto` takes the best device there is")
    return "cpu" if device == "mps" else device


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix, copied to a device a block at a time.

    Args:
        vectors: (n, dim); may be read-only or a memory-mapped file.
        index: (rows,) which rows of the matrix, or None for all.
        device: where blocks go.
    """

    vectors: Vectors
    index: Index | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, vectors: Vectors, device: str = "auto", what: str = "vectors") -> Self:
        """Check a matrix and return all its rows.

        Raises:
            DataError: a number is not finite, or a vector's length is neither 1 nor 0; the message names the row.
        """
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError(f"{what} must be (n, dim) float32, not {vectors.shape} {vectors.dtype}")
        rows = cls(vectors, None, choose_device(device))
        for part in spans(len(vectors), rows.fitting(16)):
            with np.errstate(invalid="ignore", over="ignore"):
                length = np.sqrt(np.einsum("ij,ij->i", vectors[part], vectors[part], dtype=np.float64))
            bad = np.flatnonzero(~((np.abs(length - 1) < UNIT) | (length == 0)))  # `~`, so that NaN is bad, too
            if len(bad):
                raise refused(what, part.start + int(bad[0]), float(length[bad[0]]))
        return rows

    def __len__(self) -> int:
        return len(self.vectors) if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def only(self, index: Index) -> Rows:
        """Return some of these rows."""
        return Rows(self.vectors, index if self.index is None else self.index[index], self.device)

    def take(self, part: slice | Index) -> torch.Tensor:
        """Copy some rows to the device: (..., dim) float32."""
        import torch

        at = part if self.index is None else self.index[part]
        return torch.from_numpy(np.array(self.vectors[at])).to(self.device)

    def fitting(self, bytes_a_number: int) -> int:
        """Return how many rows fit into the memory budget for a block, at so many bytes for each number."""
        budget = BLOCK_BYTES if self.device == "cpu" else DEVICE_BLOCK_BYTES
        return max(1, budget // max(1, bytes_a_number * self.dim))


def refused(what: str, row: int, length: float) -> DataError:
    if np.isfinite(length):
        return DataError(
            f"row {row} of the {what} has length {length:.6g}, not 1", hint="divide each vector by its length"
        )
    return DataError(
        f"row {row} of the {what} has a number that is not finite", hint="the encoder or the file of vectors is broken"
    )


@dataclass(frozen=True)
class Distinct:
    """Groups of bit-equal rows.

    Two equal rows may end up in different groups. Only time depends on finding them: thousands of equal rows would
    make a search slow, but never wrong.

    Args:
        group: (n,) the group of each row.
        first: (groups,) the lowest row of each group, ascending.
        members: (n,) rows by group, ascending within each.
        starts: (groups + 1,) where each group begins in `members`.
    """

    group: Index
    first: Index
    members: Index
    starts: Index

    @property
    def sizes(self) -> Index:
        return np.diff(self.starts)


def distinct(rows: Rows) -> Distinct:
    """Group the equal rows of a whole matrix, with one number a row in memory."""
    leader = leaders(fingerprints(rows))
    candidates = np.flatnonzero(leader != np.arange(len(leader)))
    for part in spans(len(candidates), rows.fitting(16)):  # equal fingerprints may belong to different rows
        mine = candidates[part]
        other = (rows.vectors[mine] != rows.vectors[leader[mine]]).any(axis=1)
        leader[mine[other]] = mine[other]
    first, group = np.unique(leader, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(first)))]).astype(np.int64)
    return Distinct(group.astype(np.int64), first, np.argsort(group, kind="stable"), starts)


def fingerprints(rows: Rows) -> npt.NDArray[np.uint64]:
    """Hash each row to 64 bits: the sum of its numbers' bits, each times a random odd factor."""
    factors = np.random.default_rng(0).integers(0, 2**63, rows.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    out = np.empty(len(rows), np.uint64)
    for part in spans(len(rows), rows.fitting(24)):
        bits = np.ascontiguousarray(rows.vectors[part]).view(np.uint32)
        out[part] = (bits * factors).sum(axis=1, dtype=np.uint64)
    return out


def leaders(marks: npt.NDArray[np.uint64]) -> Index:
    """Return for each row the lowest row with the same fingerprint."""
    order = np.argsort(marks, kind="stable")
    change = np.ones(len(order), bool)
    change[1:] = marks[order[1:]] != marks[order[:-1]]
    begin = np.maximum.accumulate(np.where(change, np.arange(len(order)), 0))
    leader = np.empty(len(order), np.int64)
    leader[order] = order[begin]
    return leader


@dataclass(frozen=True)
class Tops:
    """The pool's rows of greatest cosine with each query, the greatest first, ties by the lowest row.

    Args:
        index: (queries, k) rows of the pool, -1 where there are fewer than k.
        cosine: (queries, k), -inf where there are fewer.
    """

    index: Index
    cosine: Cosines

    @classmethod
    def empty(cls, rows: int, k: int) -> Tops:
        return cls(np.full((rows, k), -1, np.int64), np.full((rows, k), -np.inf))


def first_in_rows(row: Index, place: Index, cosine: Cosines, shape: tuple[int, int]) -> tuple[Index, Cosines]:
    """Return the k entries of greatest cosine in each row: places and cosines, -1 and -inf where there are fewer.

    Args:
        row: (entries,) the row of each entry.
        place: (entries,) its row in the pool; the lowest wins a tie.
        cosine: (entries,) its cosine.
        shape: rows and k.
    """
    order = np.lexsort((place, -cosine, row))
    row, place, cosine = row[order], place[order], cosine[order]
    counts = np.bincount(row, minlength=shape[0])
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, 2, ... within each row
    early = rank < shape[1]
    out = Tops.empty(*shape)
    out.index[row[early], rank[early]] = place[early]
    out.cosine[row[early], rank[early]] = cosine[early]
    return out.index, out.cosine
