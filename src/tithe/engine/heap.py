"""One heap for all threads: what a command does first, before anything starts a thread."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def share_one_heap() -> None:
    """Keep glibc from giving every worker thread a heap of its own: each would hold on to a batch's worth of memory."""
    arena_max = -8
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(arena_max, 1)
