"""How fast the device multiplies matrices: a large square, and the shapes of a model."""

from __future__ import annotations

import time
from typing import Any

import torch
from clock import timed, wait

WARM = {"cuda": 1.5, "cpu": 0.01}  # seconds of work until clocks are up
LEAST = {"cuda": 0.05, "cpu": 0.002}
SQUARE = {"cuda": (4096, 8192, 16_384), "cpu": (128,)}
ROWS = {"cuda": 16_384, "cpu": 64}
HEAD_ROWS = {"cuda": 4096, "cpu": 16}


def product(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers: zeros multiply faster."""
    generator = torch.Generator(device).manual_seed(0)
    return (
        torch.randn(m, k, device=device, dtype=dtype, generator=generator),
        torch.randn(n, k, device=device, dtype=dtype, generator=generator),
    )


def rate(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of (m, k) times the transpose of (n, k), as a linear layer has it."""
    a, b = product(m, n, k, device, dtype)
    return 2e-12 * m * n * k / timed(lambda: torch.nn.functional.linear(a, b), device, least=LEAST[device.type])


def squares(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of squares, clocks warm; the best of them is called the peak."""
    a, b = product(*[SQUARE[device.type][-1]] * 3, device, dtype)
    began = time.perf_counter()
    while time.perf_counter() - began < WARM[device.type]:
        torch.nn.functional.linear(a, b)
        wait(device)
    del a, b
    return {f"{size} x {size} x {size}": rate(size, size, size, device, dtype) for size in SQUARE[device.type]}


def of_model(weights: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of the model's own products at a large batch, and of a layer's products one after another."""
    hidden, key = weights["hidden"], weights["hidden"] // weights["heads"] * weights["key_heads"]
    wide, rows = weights["intermediate"], ROWS[device.type]
    found, seconds, done = dict[str, float](), 0.0, 0.0
    for name, n, k, times in (
        ("query, output", hidden, hidden, 2),
        ("key, value", key, hidden, 2),
        ("gate, up", wide, hidden, 2),
        ("down", hidden, wide, 1),
    ):
        found[f"{name}: {rows} x {n} x {k}"] = speed = rate(rows, n, k, device, dtype)
        done += times * 2e-12 * rows * n * k
        seconds += times * 2e-12 * rows * n * k / speed
    found["a layer's products"] = done / seconds
    m, n = HEAD_ROWS[device.type], weights["vocabulary"]
    return {**found, f"head: {m} x {n} x {hidden}": rate(m, n, hidden, device, dtype)}
