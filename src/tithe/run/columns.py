"""Columns that grow by a value at a time and hold no Python object for each: what the score table is made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

from tithe.records import FloatArray

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["float64", "int64", "int32"]
CODES = {"float64": "d", "int64": "q", "int32": "i"}


class Mask:
    """Whether there is a value, one bit each, as Arrow has it: the lowest bit of a byte first."""

    def __init__(self) -> None:
        self.bits, self.count, self.there = bytearray(), 0, 0

    def append(self, there: bool) -> None:
        place = self.count & 7
        if not place:
            self.bits.append(0)
        if there:
            self.bits[-1] |= 1 << place
            self.there += 1
        self.count += 1

    def has(self, i: int) -> bool:
        return bool(self.bits[i >> 3] >> (i & 7) & 1)

    def array(self) -> npt.NDArray[np.bool_]:
        """(values,)"""
        flags = np.unpackbits(np.frombuffer(bytes(self.bits), np.uint8), count=self.count, bitorder="little")
        return flags.view(np.bool_)

    def buffer(self, rows: range) -> pa.Buffer | None:
        """For Arrow, of rows from a multiple of eight on; None where all values are there."""
        import pyarrow as pa

        assert rows.start % 8 == 0, rows
        bits = self.bits[rows.start // 8 : -(-rows.stop // 8)]
        return None if self.there == self.count else pa.py_buffer(bytes(bits))


class Column(Sequence[Any], ABC):
    """What all columns have in common: a sequence of values, or None where there is none."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.mask = Mask()
        for value in values:
            self.append(value)

    @abstractmethod
    def append(self, value: Any) -> None: ...

    @abstractmethod
    def at(self, i: int) -> Any:
        """The value at a place that there is."""

    def arrow(self, rows: range | None = None) -> pa.Array:
        """These rows, all by default; the first one's number is a multiple of eight."""
        return self.array_of(range(len(self)) if rows is None else rows)

    @abstractmethod
    def array_of(self, rows: range) -> pa.Array: ...

    def take(self, places: Iterable[int]) -> Self:
        """The values at these places, in this order."""
        made = self.empty()
        for i in places:
            made.append(self.at(i))
        return made

    def empty(self) -> Self:
        return type(self)()

    def __len__(self) -> int:
        return self.mask.count

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Any]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self.at(j) for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self.at(i % len(self))

    def __iter__(self) -> Iterator[Any]:
        return map(self.at, range(len(self)))


class Numbers(Column):
    """Numbers of one type. What is None before the first number takes a bit, all else eight or four bytes.

    Args:
        kind: of the numbers.
        values: to begin with.
    """

    def __init__(self, kind: Kind, values: Iterable[float | int | None] = ()) -> None:
        self.kind = kind
        self.numbers: array[Any] = array(CODES[kind])
        self.before = 0  # places before the first number
        super().__init__(values)

    def empty(self) -> Self:
        return type(self)(self.kind)

    def append(self, value: float | int | None) -> None:
        if value is not None or self.mask.there:
            self.numbers.append(0 if value is None else value)
        else:
            self.before += 1
        self.mask.append(value is not None)

    def at(self, i: int) -> float | int | None:
        return self.numbers[i - self.before] if self.mask.has(i) else None

    def array(self, rows: range | None = None) -> npt.NDArray[Any]:
        """(values,) of the column's own type, of these rows or of all; 0 where there is none."""
        rows = range(len(self)) if rows is None else rows
        start, stop = (max(0, place - self.before) for place in (rows.start, rows.stop))
        found = self.numbers[start:stop].tobytes()
        return np.concatenate([np.zeros(len(rows) - (stop - start), self.kind), np.frombuffer(found, self.kind)])

    def floats(self) -> FloatArray:
        """(values,) NaN where there is none."""
        found = self.array().astype(np.float64)
        found[~self.mask.array()] = math.nan
        return found

    def array_of(self, rows: range) -> pa.Array:
        import pyarrow as pa

        kind = pa.type_for_alias(self.kind)
        values = pa.py_buffer(self.array(rows))
        return pa.Array.from_buffers(kind, len(rows), [self.mask.buffer(rows), values])


class Texts(Column):
    """Texts one after the other: their bytes and four more each."""

    def __init__(self, values: Iterable[str | None] = ()) -> None:
        self.bytes, self.ends = bytearray(), array("i", [0])  # as Arrow has it: less than 2 GiB in all
        super().__init__(values)

    def append(self, value: str | None) -> None:
        if value is not None:
            self.bytes += value.encode()
        self.ends.append(len(self.bytes))
        self.mask.append(value is not None)

    def at(self, i: int) -> str | None:
        return self.bytes[self.ends[i] : self.ends[i + 1]].decode() if self.mask.has(i) else None

    def array_of(self, rows: range) -> pa.Array:
        import pyarrow as pa

        ends = np.array(self.ends[rows.start : rows.stop + 1], dtype=np.int32)
        texts = bytes(self.bytes[ends[0] : ends[-1]])
        buffers = [self.mask.buffer(rows), pa.py_buffer(ends - ends[0]), pa.py_buffer(texts)]
        return pa.Array.from_buffers(pa.string(), len(rows), buffers)


class Reasons(Column):
    """Texts that few have: nothing but a bit for those that have none, and equal ones held once."""

    def __init__(self, values: Iterable[str | None] = ()) -> None:
        self.said: dict[int, str] = {}
        self.once: dict[str, str] = {}
        super().__init__(values)

    def append(self, value: str | None) -> None:
        if value is not None:
            self.said[len(self)] = self.once.setdefault(value, value)
        self.mask.append(value is not None)

    def at(self, i: int) -> str | None:
        return self.said.get(i)

    def array_of(self, rows: range) -> pa.Array:
        return Texts(map(self.at, rows)).arrow()


def new_column(kind: Kind | Literal["string", "reason"]) -> Column:
    """An empty one."""
    return Reasons() if kind == "reason" else Texts() if kind == "string" else Numbers(kind)
