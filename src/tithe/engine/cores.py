"""How many CPU cores this process may use: those it may run on, and no more than its control groups give it time of."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines of `number:controllers:path`; of version 2 the number is 0, and no controllers


def cpu_cores() -> int:
    """Cores that this process may use; a part of one counts as one.

    A container that is limited in its processor time may run on all cores of its host: as many threads would all be
    stopped together, most of the time.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *(math.ceil(quota) for quota in quotas())]))


def threads_allowed() -> int:
    """Threads that one product may use: all cores, or as many as OMP_NUM_THREADS says."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # more than one are for nested regions
    return int(first) if first.isdecimal() and int(first) > 0 else cpu_cores()


def quotas() -> Iterator[float]:
    """Cores whose time each control group may use that this process is in, of those that are limited."""
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
    """`cpu.max` is `quota period` in microseconds, or `max period`."""
    words = " ".join(lines(group / "cpu.max")).split()
    return ratio(*words) if len(words) == 2 else None


def of_version_1(group: Path) -> float | None:
    """The same in two files; a quota of -1 is none."""
    quota, period = (lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return ratio(quota[0], period[0]) if quota and period else None


def ratio(quota: str, period: str) -> float | None:
    known = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if known else None


def lines(path: Path) -> list[str]:
    """Of a file that need not be there, or not for us."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
