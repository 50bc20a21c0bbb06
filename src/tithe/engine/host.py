"""What this process may use of its host: CPU cores, and free memory of the heap given back to the system."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

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
