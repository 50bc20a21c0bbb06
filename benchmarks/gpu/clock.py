"""Seconds and memory of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device, *, least: float, times: int = 5) -> float:
    """Seconds of one call: the median of `times` rounds that each repeat it for `least` seconds or more."""
    call()
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    repeat = max(1, round(least / max(time.perf_counter() - began, 1e-6)))
    rounds = []
    for _ in range(times):
        began = time.perf_counter()
        for _ in range(repeat):
            call()
        wait(device)
        rounds.append((time.perf_counter() - began) / repeat)
    return statistics.median(rounds)


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most memory that tensors took since the peak was forgotten; not known on a CPU, whose peak is the process's."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
