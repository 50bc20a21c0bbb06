"""How fast and how true matrices are multiplied here: the ceiling of everything that a model does."""

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
ROUND = 0.02  # seconds of a round, so that the clock's own steps do not count
ROUNDS = 5  # at least
LONGEST = 0.2  # seconds that one product may take; a dtype that is slow here gets a smaller one


@dataclass(frozen=True)
class MatmulShape:
    """(rows, inner) x (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Count multiply-adds x 2."""
        return 2 * self.rows * self.inner * self.columns

    def divided(self, by: int) -> MatmulShape:
        """Return a smaller product of the same form."""
        return MatmulShape(*(max(1, side // by) for side in (self.rows, self.inner, self.columns)))

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.inner:,} x {self.columns:,}"


@dataclass(frozen=True)
class Speed:
    """What a product reached, in GFLOP/s.

    Args:
        product: what was multiplied; on several threads, each its own.
        dtype: of both matrices.
        threads: products under way at once, each of one thread; 1 on a GPU.
        best: of all rounds.
        median: of all rounds.
    """

    product: MatmulShape
    dtype: torch.dtype
    threads: int
    best: float
    median: float


def measure(
    product: MatmulShape, dtype: torch.dtype, device: torch.device, *, threads: int = 1, seconds: float = 0.2
) -> Speed:
    """Multiply again and again for about so many seconds.

    On a CPU as the engine does it: every thread multiplies on its own, at the same time as the others.
    """
    with torch.inference_mode(), single_threads(device):
        once = min(seconds_of(product, dtype, device) for _ in range(2))
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
    """Use one thread per product on a CPU."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def affordable(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> MatmulShape:
    """Return the product, or the largest of its sixteenth, eighth, ... that takes at most `LONGEST` seconds."""
    sizes = [product.divided(by) for by in (16, 8, 4, 2, 1)]
    with torch.inference_mode(), single_threads(device):
        for small, large in pairwise(sizes):
            once = min(seconds_of(small, dtype, device) for _ in range(2))
            if once * large.flops / small.flops > LONGEST:
                return small
    return product


def operands(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two matrices of normal numbers, the same every time."""
    place = device if device.type == "cuda" else torch.device("cpu")  # large ones take seconds on a CPU
    generator = torch.Generator(place).manual_seed(0)
    left = torch.randn(product.rows, product.inner, generator=generator, device=place)
    right = torch.randn(product.inner, product.columns, generator=generator, device=place)
    return left.to(device, dtype), right.to(device, dtype)


def seconds_of(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> float:
    return clocked(*operands(product, dtype, device), 1)


def clocked(left: torch.Tensor, right: torch.Tensor, times: int) -> float:
    """Return the seconds of `times` products, by the device's own clock where it has one."""
    out = left @ right
    if left.device.type == "cuda":
        with on_device(left.device):  # events are recorded on the current one
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(times):
                torch.mm(left, right, out=out)
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000  # it counts milliseconds
    return elapsed(lambda: [torch.mm(left, right, out=out) for _ in range(times)], left.device)


def elapsed(call: Callable[[], object], device: torch.device, rounds: int = 1) -> float:
    """Return the seconds of the fastest of some calls, including the work they queue on the device."""
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def in_turns(clocks: Mapping[Name, Callable[[], float]], rounds: int, longest: float = inf) -> dict[Name, list[float]]:
    """Time several things in turns, so that other load on the machine slows all of them; return seconds per round.

    Args:
        clocks: give seconds when they are called.
        rounds: at most.
        longest: seconds; no further round once one of them needs more.
    """
    found: dict[Name, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            found[name].append(clock())
        if any(min(seconds) > longest for seconds in found.values()):
            break
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def multiplying(product: MatmulShape, dtype: torch.dtype, times: int) -> Callable[[], object]:
    """Return what one thread does in a round: `times` products on one core."""
    torch.set_num_threads(1)
    left, right = operands(product, dtype, torch.device("cpu"))
    out = left @ right
    return lambda: [torch.mm(left, right, out=out) for _ in range(times)]


def side_by_side(threads: int, prepare: Callable[[], Callable[[], object]], rounds: int = 1) -> list[float]:
    """Run work in several CPU threads at once; return seconds per round, first start to last end.

    Args:
        threads: that work at the same time.
        prepare: called in each thread; makes what that thread does in a round.
        rounds: begun by all threads together.
    """
    gate = Barrier(threads)

    def run() -> list[tuple[float, float]]:
        spans = []
        try:
            with torch.inference_mode():  # counts for one thread
                work = prepare()
                for _ in range(rounds):
                    gate.wait()
                    began = time.perf_counter()
                    work()
                    spans.append((began, time.perf_counter()))
        except BaseException:
            gate.abort()  # or the others would wait for ever
            raise
        return spans

    with ThreadPoolExecutor(threads) as pool:
        spans = [future.result() for future in [pool.submit(run) for _ in range(threads)]]
    return [max(end for _, end in one) - min(start for start, _ in one) for one in zip(*spans, strict=True)]


def relative_error(product: MatmulShape, dtype: torch.dtype, device: torch.device) -> float:
    """Return |c - c64| / |c64| (Frobenius norms) of a product in a dtype against float64."""
    left, right = operands(product, dtype, device)
    found = (left @ right).cpu().double()
    wanted = left.cpu().double() @ right.cpu().double()
    return float((found - wanted).norm() / wanted.norm())
