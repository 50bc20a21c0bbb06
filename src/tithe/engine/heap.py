"""The C library's heap, where it is glibc's: one for all threads, and what lies free in it given back."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

ARENA_MAX = -8
FREE = 48 << 20  # bytes that may lie free between two batches


def share_one_heap() -> None:
    """Keep glibc from giving every worker thread a heap of its own: each would hold on to a batch's worth of memory.

    What a command does first, before anything starts a thread.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)


def give_back(above: int = FREE) -> None:
    """Return free memory to the system where more than `above` bytes of it lie between what is in use.

    Batches differ in size, and what they leave behind does not fit together: without this a bf16 run of a small model
    holds on to 80 MB more than it uses. To return it after every batch would cost more in page faults than it is worth.
    """
    heap = _glibc()
    if heap is not None and heap.mallinfo2().fordblks > above:
        heap.malloc_trim(0)


class _Figures(ctypes.Structure):
    """`struct mallinfo2`; of these only `fordblks`, the bytes in free chunks, is read."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@cache
def _glibc() -> Any:
    """The C library with its heap's functions, or None where it has none (musl, macOS, Windows, glibc before 2.33)."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Figures
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError, TypeError):
        return None
    return library
