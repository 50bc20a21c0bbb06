"""The host: CPU cores and memory this process may use, and non-blocking copies between host and device."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

FREE = 48 << 20  # free heap bytes that are left alone between two batches


def cpu_cores() -> int:
    """Count the cores that this process may use: by affinity, the container's CPU-time quota, and LOKY_MAX_CPU_COUNT.

    A container with a CPU-time quota sees all cores of its host, but with one thread for each of them all threads would
    be throttled together most of the time.
    """
    from joblib import cpu_count

    return int(cpu_count())


def threads_allowed() -> int:
    """Return how many threads one matrix product may use: OMP_NUM_THREADS if it is set, else one per core."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # further numbers are for nested regions
    return int(first) if first.isdecimal() and int(first) > 0 else cpu_cores()


def trim_heap(above: int = FREE) -> None:
    """Return free heap memory to the system if it is more than `above` bytes.

    Batches differ in size and fragment the heap: without this a bf16 run of a small model holds on to 80 MB more than
    it uses. Trimming after every batch would cost more in page faults than it saves.
    """
    heap = _glibc()
    if heap is not None and heap.mallinfo2().fordblks > above:
        heap.malloc_trim(0)


class _Figures(ctypes.Structure):
    """C's `struct mallinfo2`, of which only `fordblks` is read: bytes in free chunks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@cache
def _glibc() -> Any:
    """Load the C library; None if it lacks these heap functions (musl, macOS, Windows, old glibc)."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Figures
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError, TypeError):
        return None
    return library


PendingArray: TypeAlias = Callable[[], npt.NDArray[Any]]  # waits for the copy when called


def to_device(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy to a device; to a GPU from pinned memory, as any other copy would wait for all queued work first."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def start_fetch(values: torch.Tensor) -> PendingArray:
    """Start a device-to-host copy without blocking; call the result to wait for it."""
    if values.device.type != "cuda":
        there = values.cpu().numpy()
        return lambda: there
    device = values.device
    with on_device(device):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

    def wait() -> npt.NDArray[Any]:
        with on_device(device):
            done.synchronize()
        return host.numpy().copy()  # frees the pinned memory for the next copy

    return wait


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a numbered CUDA device the current one within the `with` block; do nothing for other devices."""
    numbered = device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if numbered else nullcontext()
