"""Copies between the host and a device that nobody waits for before what is copied is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

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
