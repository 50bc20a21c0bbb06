"""How many tokens a batch may hold on a GPU: reckoned from what is free there and what small batches took.

    peak(n) = fixed + per_token x n        the largest power of two n with peak(n) <= SHARE x free is taken

A batch has its peak in the model's blocks (states, the MLP's inner width, queries, keys, values) or in the output head
(the last states, and a tile of rows x vocabulary). In small batches the head's is often the higher one, and hides how
fast the blocks' grows. So each is measured apart, by batches of which one token a sequence is scored, and all; the
smaller of the two budgets counts. Measured, as models differ.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import holding_devices
from tithe.records import Pass

LEAST = 1024
# More was not seen to gain anything on an H200: of the matmul peak a model of 0.5B has 44, 54 and 52 % at 16, 32 and 64
# thousand, and one of 8B 86, 88 and 87 %.
MOST = 32_768
SHARED = 16_384  # where several GPUs share a window, whose batches are to go round
USUAL = 16_384  # where nothing can be measured
PROBES = (1024, 2048)  # tokens of the two batches
SEQUENCE = 512  # tokens of each of their sequences: some attention takes more for longer ones
SHARE = 0.7  # of what is free: hidden states that readouts hold, and rows longer than the probe's, take the rest
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
EVERY = 0.005  # seconds between two looks
STATM = Path("/proc/self/statm")  # pages: whole, resident, ...


@dataclass(frozen=True)
class MemoryBudget:
    """A token budget, and what it was reckoned from.

    Args:
        budget: tokens a batch may hold.
        free: bytes that were free beside the model.
        fixed: bytes that any batch takes, where its peak leaves less room: in the blocks or in the head.
        per_token: bytes that each token of it takes there besides.
        note: what was odd; empty if nothing.
    """

    budget: int
    free: int | None = None
    fixed: int | None = None
    per_token: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def find_memory_budget(loaded: LoadedModel, most: int = MOST) -> MemoryBudget:
    """Find the token budget of a model on its GPU, `most` at the most."""
    if loaded.device.type != "cuda":
        return MemoryBudget(USUAL, note=f"free memory is not told on `{loaded.device.type}`")
    if loaded.forward_path == "single":
        return MemoryBudget(USUAL, note="one sequence at a time")
    places = [torch.device(name) for name in holding_devices(loaded)]
    room = min((budget_on(loaded, place) for place in places), key=lambda room: room.budget)
    return replace(room, budget=min(room.budget, most))


def budget_on(loaded: LoadedModel, place: torch.device) -> MemoryBudget:
    """Find the budget by one of the devices that hold the model."""
    return reckon(lambda tokens, whole: extra_bytes(loaded, tokens, whole, place), lambda: free_bytes(place))


def reckon(taken: Callable[[int, bool], int], free: Callable[[], int]) -> MemoryBudget:
    """Compute the budget from what batches take.

    Args:
        taken: bytes that a batch of so many tokens takes at its peak, all of them scored or one of each sequence.
        free: bytes that are free; asked for after the first batch, whose workspaces stay.
    """
    small, large = PROBES
    try:
        taken(small, True)  # kernels are loaded, and what they keep
        there = free()
        found = [line((small, taken(small, whole)), (large, taken(large, whole))) for whole in (False, True)]
    except (torch.OutOfMemoryError, MemoryError):
        return MemoryBudget(LEAST, note=f"a batch of {large:,} tokens does not fit")
    rooms = [
        MemoryBudget(power_of_two((SHARE * there - fixed) / per_token), there, fixed, per_token)
        for fixed, per_token in found
    ]
    return min(rooms, key=lambda room: room.budget)


def line(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, float]:
    """Return fixed bytes and bytes a token, from the tokens and bytes of two batches."""
    per_token = max(1.0, (other[1] - one[1]) / (other[0] - one[0]))
    return max(0, int(one[1] - per_token * one[0])), per_token


def power_of_two(tokens: float) -> int:
    """Return the largest power of two that is not above, between the bounds."""
    return max(LEAST, min(MOST, 1 << max(0, int(tokens).bit_length() - 1))) if tokens >= 1 else LEAST


def extra_bytes(loaded: LoadedModel, tokens: int, whole: bool, place: torch.device) -> int:
    """Measure what reading so many tokens takes on a device above the model."""
    before = torch.cuda.memory_allocated(place)
    with peak_memory(place) as peak:
        loaded.read_on(loaded.forward_path, probe_batch(loaded, tokens, whole))
    return max(0, (peak.bytes or 0) - before)


def probe_batch(loaded: LoadedModel, tokens: int, whole: bool = True) -> list[Pass]:
    """Make sequences of usual length, or as long as the model can read in a batch.

    Args:
        loaded: the model.
        tokens: of all sequences.
        whole: whether all tokens are scored, or the last one of each.
    """
    config = loaded.model.config.get_text_config()
    limits = [SEQUENCE, *(getattr(config, name, None) for name in LIMITS), loaded.single_above]
    length = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(loaded.vocabulary, 1000), (max(1, tokens // length), length)).astype(np.int32)
    return [Pass(row, 1 if whole else length - 1) for row in ids]


def free_bytes(device: torch.device) -> int:
    """Count what the driver has free, and what torch holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


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
    """Count the bytes held now; of the process where the system says so, else the most it ever held."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
