"""Which 64-bit hashes came before, at 12 to 24 bytes each; a `set` takes about 100."""

from __future__ import annotations

from array import array

import numpy as np


class Seen:
    """A set of numbers from 0 to 2^64 - 1 that only grows; quick where they are spread evenly, as hashes are.

    A table of open addressing, at most two thirds full: a number lies where its highest bits say, or in the next free
    place.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 64))
        self._shift = 64 - 6  # leaves as many bits as name a place
        self._count = 0  # in the table
        self._zero = False  # 0 marks a free place, and so is kept apart

    def add(self, number: int) -> bool:
        """Take a number in; whether it is new."""
        table, place, last = self._table, number >> self._shift, len(self._table) - 1
        while there := table[place]:
            if there == number:
                return False
            place = place + 1 & last
        if not number:
            new, self._zero = not self._zero, True
            return new
        table[place] = number
        self._count += 1
        if 3 * self._count > 2 * last:
            self._grow()
        return True

    def __contains__(self, number: int) -> bool:
        table, place, last = self._table, number >> self._shift, len(self._table) - 1
        while (there := table[place]) and there != number:
            place = place + 1 & last
        return bool(there) or (self._zero and not number)

    def __len__(self) -> int:
        return self._count + self._zero

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return len(self._table) * self._table.itemsize

    def _grow(self) -> None:
        """Twice the places. Taken in by size, each number lies where its bits say or right behind the one before."""
        old = np.frombuffer(self._table, dtype=np.uint64)
        numbers = np.sort(old[old != 0])
        self._shift -= 1
        home, i = (numbers >> np.uint64(self._shift)).astype(np.int64), np.arange(len(numbers))
        place = np.maximum.accumulate(home - i) + i
        table = np.zeros(2 * len(old), dtype=np.uint64)
        inside = place < len(table)
        table[place[inside]] = numbers[inside]
        self._table = array("Q", table.tobytes())
        self._count -= int((~inside).sum())
        for number in numbers[~inside].tolist():  # the last places are taken: on from the first
            self.add(number)


def first_half(key: bytes) -> int:
    """The first 64 bits of a hash."""
    return int.from_bytes(key[:8], "little")
