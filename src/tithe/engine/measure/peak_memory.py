"""The most memory that was held while something ran."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import torch

EVERY = 0.005  # seconds between two looks
STATM = Path("/proc/self/statm")  # pages: whole, resident, ...


@dataclass
class PeakMemory:
    """Bytes: of the process on a CPU, of torch's tensors on a GPU. None until it is known."""

    bytes: int | None = None


@contextmanager
def peak_memory(*devices: torch.device) -> Iterator[PeakMemory]:
    """Watch what runs within; of several GPUs, over which one model is spread, the peaks are added up."""
    peak = PeakMemory()
    if all(device.type == "cuda" for device in devices):
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = sum(torch.cuda.max_memory_allocated(device) for device in devices)
        return
    done = Event()
    watcher = Thread(target=watch, args=(devices[0], peak, done), daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def watch(device: torch.device, peak: PeakMemory, done: Event) -> None:
    """Look again and again; the last look comes after the end."""
    over = False
    while not over:
        over = done.wait(EVERY)
        peak.bytes = max(peak.bytes or 0, held(device))


def held(device: torch.device) -> int:
    """Bytes held now; of the process where the system says so, else the most it ever held."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
