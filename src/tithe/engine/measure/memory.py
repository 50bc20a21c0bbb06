"""Compute how many tokens a batch may hold on a GPU, from its free memory and what small batches need.

    peak(n) = fixed + per_token x n        the largest power of two n with peak(n) <= SHARE x free is used

A batch reaches its peak in the model's blocks (states, the MLP's inner width, queries, keys, values) or in the output
head (the last states, and a tile of rows x vocabulary). In small batches the head's peak is often higher and hides how
fast the blocks' peak grows. So both are measured, with batches that score one token per sequence and batches that score
all, and the smaller budget counts. Models differ too much to calculate this instead.
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
# More gained nothing on an H200: at 16, 32 and 64 thousand tokens a 0.5B model reaches 44, 54 and 52 % of the matmul
# peak, and an 8B model 86, 88 and 87 %.
MOST = 32_768
SHARED = 16_384  # upper bound with several GPUs: one window of passes must make enough batches for all of them
USUAL = 16_384  # used where nothing can be measured
PROBES = (1024, 2048)  # tokens of the two measured batches
SEQUENCE = 512  # tokens of each of their sequences: some attention needs more memory for longer ones
SHARE = 0.7  # of the free memory; hidden states that readouts hold, and sequences longer than SEQUENCE, take the rest
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
EVERY = 0.005  # seconds between two samples
STATM = Path("/proc/self/statm")  # in pages: total, resident, ...


@dataclass(frozen=True)
class MemoryBudget:
    """A token budget, and the numbers it was computed from.

    Args:
        budget: tokens that a batch may hold.
        free: free bytes beside the model.
        fixed: bytes that any batch needs, in the blocks or in the head, whichever allows the smaller budget.
        per_token: bytes that each of its tokens needs there.
        note: why it was not measured; empty if it was.
    """

    budget: int
    free: int | None = None
    fixed: int | None = None
    per_token: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the known facts, for the run record."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def find_memory_budget(loaded: LoadedModel, most: int = MOST) -> MemoryBudget:
    """Return the token budget of a model on its GPU, at most `most`."""
    if loaded.device.type != "cuda":
        return MemoryBudget(USUAL, note=f"free memory is not told on `{loaded.device.type}`")
    if loaded.forward_path == "single":
        return MemoryBudget(USUAL, note="one sequence at a time")
    places = [torch.device(name) for name in holding_devices(loaded)]
    smallest = min((budget_on(loaded, place) for place in places), key=lambda one: one.budget)
    return replace(smallest, budget=min(smallest.budget, most))


def budget_on(loaded: LoadedModel, place: torch.device) -> MemoryBudget:
    """Return the budget that one of the model's devices allows."""
    return compute_budget(lambda tokens, whole: extra_bytes(loaded, tokens, whole, place), lambda: free_bytes(place))


def compute_budget(taken: Callable[[int, bool], int], free: Callable[[], int]) -> MemoryBudget:
    """Compute the budget from what small batches need.

    Args:
        taken: returns the peak bytes of a batch, given its tokens and whether all of them are scored or one per
            sequence.
        free: returns the free bytes; called after the first batch, as that batch's workspaces stay allocated.
    """
    small, large = PROBES
    try:
        taken(small, True)  # loads kernels and allocates their workspaces
        there = free()
        found = [line((small, taken(small, whole)), (large, taken(large, whole))) for whole in (False, True)]
    except (torch.OutOfMemoryError, MemoryError):
        return MemoryBudget(LEAST, note=f"a batch of {large:,} tokens does not fit")
    budgets = [
        MemoryBudget(power_of_two((SHARE * there - fixed) / per_token), there, fixed, per_token)
        for fixed, per_token in found
    ]
    return min(budgets, key=lambda one: one.budget)


def line(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, float]:
    """Return fixed bytes and bytes per token of the line through two batches' (tokens, bytes)."""
    per_token = max(1.0, (other[1] - one[1]) / (other[0] - one[0]))
    return max(0, int(one[1] - per_token * one[0])), per_token


def power_of_two(tokens: float) -> int:
    """Round down to a power of two, within LEAST and MOST."""
    return max(LEAST, min(MOST, 1 << max(0, int(tokens).bit_length() - 1))) if tokens >= 1 else LEAST


def extra_bytes(loaded: LoadedModel, tokens: int, whole: bool, place: torch.device) -> int:
    """Measure the bytes beyond the model that reading `tokens` tokens needs on a device, at the peak."""
    before = torch.cuda.memory_allocated(place)
    with peak_memory(place) as peak:
        loaded.read_on(loaded.forward_path, probe_batch(loaded, tokens, whole))
    return max(0, (peak.bytes or 0) - before)


def probe_batch(loaded: LoadedModel, tokens: int, whole: bool = True) -> list[Pass]:
    """Make sequences of SEQUENCE tokens, or shorter ones if the model cannot read that many in a batch.

    Args:
        loaded: the model.
        tokens: of all sequences together.
        whole: whether all tokens are scored, or only the last one of each sequence.
    """
    config = loaded.model.config.get_text_config()
    limits = [SEQUENCE, *(getattr(config, name, None) for name in LIMITS), loaded.single_above]
    length = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(loaded.vocabulary, 1000), (max(1, tokens // length), length)).astype(np.int32)
    return [Pass(row, 1 if whole else length - 1) for row in ids]


def free_bytes(device: torch.device) -> int:
    """Return the bytes that the driver has free, plus those that torch's cache holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@dataclass
class PeakMemory:
    """The peak memory in bytes: of the process on a CPU, of torch's tensors on a GPU; None until known."""

    bytes: int | None = None


@contextmanager
def peak_memory(*devices: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory within the `with` block; of several GPUs the peaks are added up."""
    peak = PeakMemory()
    if all(device.type == "cuda" for device in devices):
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = sum(torch.cuda.max_memory_allocated(device) for device in devices)
        return
    done = Event()
    sampler = Thread(target=sample_peak, args=(devices[0], peak, done), daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def sample_peak(device: torch.device, peak: PeakMemory, done: Event) -> None:
    """Sample memory until `done`, and once more after it."""
    over = False
    while not over:
        over = done.wait(EVERY)
        peak.bytes = max(peak.bytes or 0, held(device))


def held(device: torch.device) -> int:
    """Return the bytes in use now; on systems that do not report it, the most the process ever used."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
