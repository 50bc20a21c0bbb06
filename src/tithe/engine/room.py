"""How many tokens a batch may hold on a GPU: reckoned from what is free there and what two small batches took.

    peak(n) = fixed + per_token x n        the largest power of two n with peak(n) <= SHARE x free is taken

`per_token` holds all that grows with a batch (states, the MLP's inner width, queries, keys, values), `fixed` what does
not (a tile of the output head: rows x vocabulary, workspaces of the kernels). Measured, as models differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tithe.engine.peak_memory import peak_memory
from tithe.records import Pass

if TYPE_CHECKING:
    from tithe.engine.model import LoadedModel

LEAST, MOST = 1024, 65_536
USUAL = 16_384  # where nothing can be measured
PROBES = (1024, 2048)  # tokens of the two batches
SEQUENCE = 512  # tokens of each of their sequences: some attention takes more for longer ones
SHARE = 0.7  # of what is free: hidden states that readouts hold, and rows longer than the probe's, take the rest
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Room:
    """A token budget, and what it was reckoned from.

    Args:
        budget: tokens a batch may hold.
        free: bytes that were free beside the model.
        fixed: bytes that any batch takes.
        per_token: bytes that each token of it takes besides.
        note: what was odd; empty if nothing.
    """

    budget: int
    free: int | None = None
    fixed: int | None = None
    per_token: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the run record, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def find_room(loaded: LoadedModel) -> Room:
    """The token budget of a model on its GPU."""
    if loaded.device.type != "cuda":
        return Room(USUAL, note=f"free memory is not told on `{loaded.device.type}`")
    if loaded.road == "single":
        return Room(USUAL, note="one sequence at a time")
    return reckon(lambda tokens: extra_bytes(loaded, tokens), lambda: free_bytes(loaded.device))


def reckon(taken: Callable[[int], int], free: Callable[[], int]) -> Room:
    """The budget, by what batches take.

    Args:
        taken: bytes that a batch of so many tokens takes at its peak.
        free: bytes that are free; asked for after the first batch, whose workspaces stay.
    """
    small, large = PROBES
    try:
        taken(small)  # kernels are loaded, and what they keep
        there, first, second = free(), taken(small), taken(large)
    except (torch.OutOfMemoryError, MemoryError):
        return Room(LEAST, note=f"a batch of {large:,} tokens does not fit")
    per_token = max(1.0, (second - first) / (large - small))
    fixed = max(0, int(first - per_token * small))
    fits = (SHARE * there - fixed) / per_token
    return Room(power_of_two(fits), there, fixed, per_token)


def power_of_two(tokens: float) -> int:
    """The largest that is not above, between the bounds."""
    return max(LEAST, min(MOST, 1 << max(0, int(tokens).bit_length() - 1))) if tokens >= 1 else LEAST


def extra_bytes(loaded: LoadedModel, tokens: int) -> int:
    """What reading so many tokens takes above the model, all of them scored."""
    before = torch.cuda.memory_allocated(loaded.device)
    with peak_memory(loaded.device) as peak:
        loaded.along(loaded.road, probe_batch(loaded, tokens))
    return max(0, (peak.bytes or 0) - before)


def probe_batch(loaded: LoadedModel, tokens: int) -> list[Pass]:
    """Sequences of usual length, or as long as the model can read; never so long that they are read alone."""
    config = loaded.model.config.get_text_config()
    limits = [SEQUENCE, *(getattr(config, name, None) for name in LIMITS), loaded.alone_above]
    length = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(loaded.vocabulary, 1000), (max(1, tokens // length), length)).astype(np.int32)
    return [Pass(row, 1) for row in ids]


def free_bytes(device: torch.device) -> int:
    """What the driver has, and what torch holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
