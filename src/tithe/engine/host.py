"""CPU cores and memory of this process's host, and copies between it and a device that do not block."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines of `number:controllers:path`; of version 2 the number is 0, and no controllers
FREE = 48 << 20  # bytes that may lie free between two batches


def cpu_cores() -> int:
    """Count the cores that this process may use; a part of one counts as one.

    A container that is limited in its processor time may run on all cores of its host: as many threads would all be
    stopped together, most of the time.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *(math.ceil(quota) for quota in quotas())]))


def threads_allowed() -> int:
    """Return how many threads one product may use: all cores, or as many as OMP_NUM_THREADS says."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # more than one are for nested regions
    return int(first) if first.isdecimal() and int(first) > 0 else cpu_cores()


def quotas() -> Iterator[float]:
    """Yield the quota, in cores, of each limited control group that this process is in."""
    for number, controllers, path in (line.split(":", 2) for line in lines(OWN)):
        if number == "0" and not controllers:
            folders, read = [MOUNTED], of_version_2
        elif "cpu" in controllers.split(","):
            folders, read = [MOUNTED / "cpu", MOUNTED / controllers], of_version_1
        else:
            continue
        own = Path(path.lstrip("/"))  # as the host sees it, where a container has no namespace of its own
        for folder in dict.fromkeys(folder / group for folder in folders for group in (own, *own.parents)):
            found = read(folder)
            if found is not None:
                yield found


def of_version_2(group: Path) -> float | None:
    """Read the quota of version 2: `cpu.max` holds `quota period` in microseconds, or `max period`."""
    words = " ".join(lines(group / "cpu.max")).split()
    return ratio(*words) if len(words) == 2 else None


def of_version_1(group: Path) -> float | None:
    """Read the quota of version 1, which is in two files; -1 means none."""
    quota, period = (lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return ratio(quota[0], period[0]) if quota and period else None


def ratio(quota: str, period: str) -> float | None:
    known = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if known else None


def lines(path: Path) -> list[str]:
    """Return the file's lines, or none if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


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
    """Load the C library with its heap's functions; None where it lacks them (musl, macOS, Windows, old glibc)."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Figures
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError, TypeError):
        return None
    return library


Fetched: TypeAlias = Callable[[], npt.NDArray[Any]]  # called, it is waited for


def to(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy to a device; to a GPU through pinned memory, since any other copy first waits for all its queued work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fetched(values: torch.Tensor) -> Fetched:
    """Start a device-to-host copy without blocking; call the result to wait for it."""
    if values.device.type != "cuda":
        there = values.cpu().numpy()
        return lambda: there
    device = values.device
    with on(device):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

    def wait() -> npt.NDArray[Any]:
        with on(device):
            done.synchronize()
        return host.numpy().copy()  # pinned memory is for the next copy

    return wait


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a numbered CUDA device the current one for a while; do nothing for any other device."""
    numbered = device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if numbered else nullcontext()
