"""Measure how fast and how accurately this machine multiplies matrices, which bounds the speed of any model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from threading import Barrier
from typing import TypeVar

import torch

from tithe.engine.host import on_device

Name = TypeVar("Name")
ROUND = 0.02  # seconds per round: long against the clock's resolution
ROUNDS = 5  # at least
LONGEST = 0.2  # most seconds for one product; a slow dtype is measured on a smaller one


@dataclass(frozen=True)
class MatmulShape:
    """The sizes of a matrix product: (rows, inner) x (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Count multiply-adds x 2."""
        return 2 * self.rows * self.inner * self.columns

    def divided(self, by: int) -> MatmulShape:
        """Return a smaller product with the same proportions."""
        return MatmulShape(*(max(1, side // by) for side in (self.rows, self.inner, self.columns)))

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.inner:,} x {self.columns:,}"


@dataclass(frozen=True)
class Speed:
    """The speed of a product, in GFLOP/s.

    Args:
        product: its sizes; with several threads, each computes one.
        dtype: of both matrices.
        threads: products running at once, one thread each; 1 on a GPU.
        best: fastest round.
        median: median round.
    """

    product: MatmulShape
    dtype: torch.dtype
    threads: int
    best: float
    median: float


def measure(
    product: MatmulShape, dtype: torch.dtype, device: torch.device, *, threads: int = 1, seconds: float = 0.2
) -> Speed:
    """Measure a product for about `seconds`.

    On a CPU the threads multiply at the same time, one product each, as the engine's workers do.
    """
    with torch.inference_mode(), single_threads(device):
        once = min(seconds_of(product, dtype, device) for _ in range(2))  # the first call warms up
        times = max(1, round(ROUND / once))
        rounds = max(ROUNDS, round(seconds / (once * times)))
        work = product.flops * times * threads
        if threads == 1:
            matrices = operands(product, dtype, device)
            walls = [clocked(*matrices, times) for _ in range(rounds)]
        else:
            walls = side_by_side(threads, lambda: multiplying(product, dtype, times), rounds)
    rates = [work / wall / 1e9 for wall in walls]
    return Speed(product, dtype, threads, max(rates), statistics.median(rates))


@contextmanager
def single_threads(device: torch.device) -> Iterator[None]:
    """Use one thread per product on a CPU within the `with` block."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def affordable(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> MatmulShape:
    """Return the product, or the largest fraction of it (1/2 to 1/16) that takes at most `LONGEST` seconds."""
    sizes = [product.divided(by) for by in (16, 8, 4, 2, 1)]
    with torch.inference_mode(), single_threads(device):
        for small, large in pairwise(sizes):
            once = min(seconds_of(small, dtype, device) for _ in range(2))
            if once * large.flops / small.flops > LONGEST:
                return small
    return product


def operands(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two matrices of standard normal numbers, the same every time: (rows, inner) and (inner, columns)."""
    place = device if device.type == "cuda" else torch.device("cpu")  # drawing large ones on a CPU takes seconds
    generator = torch.Generator(place).manual_seed(0)
    left = torch.randn(product.rows, product.inner, generator=generator, device=place)
    right = torch.randn(product.inner, product.columns, generator=generator, device=place)
    return left.to(device, dtype), right.to(device, dtype)


def seconds_of(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds that one product takes."""
    return clocked(*operands(product, dtype, device), 1)


def clocked(left: torch.Tensor, right: torch.Tensor, times: int) -> float:
    """Return the seconds that `times` products take, by the device's own clock if it has one."""
    out = left @ right  # warms up, and allocates the output for all rounds
    if left.device.type == "cuda":
        with on_device(left.device):  # events are recorded on the current one
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(times):
                torch.mm(left, right, out=out)
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000  # milliseconds -> seconds
    return elapsed(lambda: [torch.mm(left, right, out=out) for _ in range(times)], left.device)


def elapsed(call: Callable[[], object], device: torch.device, rounds: int = 1) -> float:
    """Return the seconds of the fastest of `rounds` calls, including the work they queue on the device."""
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def in_turns(clocks: Mapping[Name, Callable[[], float]], rounds: int, longest: float = inf) -> dict[Name, list[float]]:
    """Time several things in turns, so that other load on the machine affects all alike; return seconds per round.

    Args:
        clocks: functions that run something and return its seconds.
        rounds: most rounds.
        longest: stop after a round if anything's fastest time is above this, in seconds.
    """
    found: dict[Name, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            found[name].append(clock())
        if any(min(seconds) > longest for seconds in found.values()):
            break
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def multiplying(product: MatmulShape, dtype: torch.dtype, times: int) -> Callable[[], object]:
    """Return a function that computes `times` products on one core, the work of one thread in a round."""
    torch.set_num_threads(1)
    left, right = operands(product, dtype, torch.device("cpu"))
    out = left @ right
    return lambda: [torch.mm(left, right, out=out) for _ in range(times)]


def side_by_side(threads: int, prepare: Callable[[], Callable[[], object]], rounds: int = 1) -> list[float]:
    """Run work in several CPU threads at once; return seconds per round, from the first start to the last end.

    Args:
        threads: number of threads.
        prepare: called in each thread; returns the function that this thread runs in each round.
        rounds: number of rounds, which all threads begin together.
    """
    gate = Barrier(threads)

    def run() -> list[tuple[float, float]]:
        spans = []
        try:
            with torch.inference_mode():  # inference mode is set per thread
                work = prepare()
                for _ in range(rounds):
                    gate.wait()
                    began = time.perf_counter()
                    work()
                    spans.append((began, time.perf_counter()))
        except BaseException:
            gate.abort()  # else the other threads would wait forever
            raise
        return spans

    with ThreadPoolExecutor(threads) as pool:
        spans = [future.result() for future in [pool.submit(run) for _ in range(threads)]]
    return [max(end for _, end in one) - min(start for start, _ in one) for one in zip(*spans, strict=True)]


def relative_error(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative error of a product in a dtype, |c - c64| / |c64| in Frobenius norms against float64."""
    left, right = operands(product, dtype, device)
    found = (left @ right).cpu().double()
    wanted = left.cpu().double() @ right.cpu().double()
    return float((found - wanted).norm() / wanted.norm())
