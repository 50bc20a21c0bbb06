"""The current GPU of a thread: where compiled kernels run, whatever they are given, and where pinned memory is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make it the current one for a while, if it is a GPU of CUDA's; without a number it is that already."""
    numbered = device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if numbered else nullcontext()
