"""Vectors as the search reads them: checked, a few at a time, equal ones once."""

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

BLOCK_BYTES = 32 * 2**20  # of vectors held at once, beside the whole
DEVICE_BLOCK_BYTES = 512 * 2**20
UNIT = 1e-3  # how far a length may be from 1


def spans(n: int, size: int) -> Iterator[slice]:
    """0..n in slices of `size`."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def choose_device(device: str) -> str:
    """`auto` is CUDA where there is some. Apple's GPU has no float64: there the processor searches."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(f"device `{device}` is not here", hint="`auto` takes the best there is")
    return "cpu" if device == "mps" else device


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix, on their way to a device in blocks.

    Args:
        vectors: (n, dim); may be read-only or a file mapped into memory.
        index: (rows,) which of them, or None for all.
        device: where blocks go.
    """

    vectors: Vectors
    index: Index | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, vectors: Vectors, device: str = "auto", what: str = "vectors") -> Self:
        """All rows of a matrix that is what it should be.

        Raises:
            DataError: a number that is not finite, or a vector whose length is neither 1 nor 0; the row is named.
        """
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError(f"{what} must be (n, dim) float32, not {vectors.shape} {vectors.dtype}")
        rows = cls(vectors, None, choose_device(device))
        for part in spans(len(vectors), rows.fitting(16)):
            with np.errstate(invalid="ignore", over="ignore"):
                length = np.sqrt(np.einsum("ij,ij->i", vectors[part], vectors[part], dtype=np.float64))
            bad = np.flatnonzero(~((np.abs(length - 1) < UNIT) | (length == 0)))
            if len(bad):
                raise refused(what, part.start + int(bad[0]), float(length[bad[0]]))
        return rows

    def __len__(self) -> int:
        return len(self.vectors) if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def only(self, index: Index) -> Rows:
        """Some of these rows."""
        return Rows(self.vectors, index if self.index is None else self.index[index], self.device)

    def take(self, part: slice | Index) -> torch.Tensor:
        """A copy of some rows on the device: (..., dim) float32."""
        import torch

        at = part if self.index is None else self.index[part]
        return torch.from_numpy(np.array(self.vectors[at])).to(self.device)

    def fitting(self, bytes_a_number: int) -> int:
        """How many rows keep within the memory for a block."""
        room = BLOCK_BYTES if self.device == "cpu" else DEVICE_BLOCK_BYTES
        return max(1, room // max(1, bytes_a_number * self.dim))


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
    """Which rows are equal to the bit.

    A row that is not found to be equal to another is merely a group of its own: nothing depends on finding them but
    time, which thousands of equal rows would cost.

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
    """Rows of a whole matrix in groups of equal ones, in memory for one number a row."""
    leader = leaders(fingerprints(rows))
    candidates = np.flatnonzero(leader != np.arange(len(leader)))
    for part in spans(len(candidates), rows.fitting(16)):
        mine = candidates[part]
        other = (rows.vectors[mine] != rows.vectors[leader[mine]]).any(axis=1)
        leader[mine[other]] = mine[other]
    first, group = np.unique(leader, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(first)))]).astype(np.int64)
    return Distinct(group.astype(np.int64), first, np.argsort(group, kind="stable"), starts)


def fingerprints(rows: Rows) -> npt.NDArray[np.uint64]:
    """64 bits of each row: a sum of its bits under random odd factors."""
    factors = np.random.default_rng(0).integers(0, 2**63, rows.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    out = np.empty(len(rows), np.uint64)
    for part in spans(len(rows), rows.fitting(24)):
        bits = np.ascontiguousarray(rows.vectors[part]).view(np.uint32)
        out[part] = (bits * factors).sum(axis=1, dtype=np.uint64)
    return out


def leaders(marks: npt.NDArray[np.uint64]) -> Index:
    """For each row the lowest one of the same fingerprint."""
    order = np.argsort(marks, kind="stable")
    change = np.ones(len(order), bool)
    change[1:] = marks[order[1:]] != marks[order[:-1]]
    begin = np.maximum.accumulate(np.where(change, np.arange(len(order)), 0))
    leader = np.empty(len(order), np.int64)
    leader[order] = order[begin]
    return leader


def first_in_rows(
    row: Index, place: Index, cosine: npt.NDArray[np.float64], shape: tuple[int, int]
) -> tuple[Index, npt.NDArray[np.float64]]:
    """The first k of each row by cosine, ties by the lowest place: two of `shape`, -1 and -inf where there are fewer.

    Args:
        row: (entries,) which row each is of.
        place: (entries,) what it stands for.
        cosine: (entries,) the greater, the earlier.
        shape: rows and k.
    """
    order = np.lexsort((place, -cosine, row))
    row, place, cosine = row[order], place[order], cosine[order]
    counts = np.bincount(row, minlength=shape[0])
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    early = rank < shape[1]
    index, value = np.full(shape, -1, np.int64), np.full(shape, -np.inf)
    index[row[early], rank[early]] = place[early]
    value[row[early], rank[early]] = cosine[early]
    return index, value
