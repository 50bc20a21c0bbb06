"""Which kernels multiply fp32 on a CPU: torch's own choice, or oneDNN's where they are faster and as true."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal, TypeAlias

import torch

from tithe.engine.measure.matmul import Product, operands, relative_error, single_threads

TRUE = 1e-6  # relative error up to which a product counts as fp32; bf16 is off by 3e-3
FASTER = 1.1  # times as fast as torch's own choice: less would not be worth other last bits
TIMED = Product(256, 768, 2048)  # rows of a pack x width x inner width of a small model
CHECKED = (Product(64, 768, 2048), Product(33, 511, 97), Product(8, 1024, 64))  # some kernels like even sizes only
ROUNDS = 4

RouteName: TypeAlias = Literal["default", "onednn"]
CPU = torch.device("cpu")
_before: list[str] = []  # torch's precision before it was changed here


@dataclass(frozen=True)
class Fp32Route:
    """The kernels that were taken for fp32 on a CPU.

    Args:
        name: `default`, torch's own choice (MKL in most builds), or `onednn`.
        why: in words.
        gflops: of each route, on one core; empty where there is nothing to choose.
        relative_error: of each route, against float64.
    """

    name: RouteName
    why: str
    gflops: Mapping[str, float] = field(default_factory=dict)
    relative_error: Mapping[str, float] = field(default_factory=dict)

    def is_true(self, name: RouteName) -> bool:
        """Whether a route rounds as fp32 does."""
        return self.relative_error[name] <= TRUE

    def as_dict(self) -> dict[str, Any]:
        """For the run record."""
        return {**asdict(self), "gflops": {name: round(rate, 1) for name, rate in self.gflops.items()}}


def take_fastest_fp32(device: torch.device, wanted: RouteName | None = None) -> Fp32Route | None:
    """Set torch to the faster route for fp32 on a CPU; None on other devices.

    The routes are probed once in a process, in about 0.2 s. What is set counts for the whole process.

    Args:
        device: where the model is going to be; for a GPU, what was set for a CPU is taken back: there the same
            setting would round to TF32.
        wanted: the route of an earlier part of the same run; it is taken where it is true, however fast it is.
    """
    if device.type != "cpu":
        put_back()
        return None
    route = held_to(probe_fp32(), wanted)
    if route.name == "default":
        put_back()
    elif not _before:
        _before.append(torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("medium")
    return route


def put_back() -> None:
    """Set torch to what it was before anything was taken here."""
    if _before:
        torch.set_float32_matmul_precision(_before.pop())


@cache
def probe_fp32() -> Fp32Route:
    """Measure both routes; leaves torch as it was."""
    before = _before[0] if _before else torch.get_float32_matmul_precision()
    with torch.inference_mode(), single_threads(CPU), precision(before):
        errors = {"default": worst_error()}
        if before != "highest":
            return Fp32Route("default", f"torch's precision had been set to `{before}`", {}, errors)
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return Fp32Route("default", "this torch has no oneDNN", {}, errors)
        left, right = operands(TIMED, torch.float32, CPU)
        own = left @ right
        with precision("medium"):
            errors["onednn"] = worst_error()
            if torch.equal(left @ right, own):
                return Fp32Route("default", "both settings of torch give the same bits: there is one route", {}, errors)
        return choose(timed(left, right), errors)


def choose(gflops: Mapping[str, float], errors: Mapping[str, float]) -> Fp32Route:
    """Take oneDNN where it is true, and faster by the margin."""
    times = gflops["onednn"] / gflops["default"]
    if errors["onednn"] > TRUE:
        why = f"oneDNN is not true fp32 here: relative error {errors['onednn']:.1e}"
        return Fp32Route("default", why, gflops, errors)
    if times < FASTER:
        return Fp32Route("default", f"oneDNN is {times:.2f} times as fast as torch's own choice", gflops, errors)
    return Fp32Route("onednn", f"{times:.2f} times as fast as torch's own choice, and as true", gflops, errors)


def held_to(route: Fp32Route, wanted: RouteName | None) -> Fp32Route:
    """The route that an earlier part of the run took, where this machine has it and it is true."""
    if wanted in (None, route.name) or not route.gflops:
        return route
    if wanted == "onednn" and route.relative_error["onednn"] > TRUE:
        return route
    return replace(route, name=wanted, why="the run began with it")


def timed(left: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """GFLOP/s of both routes, in turns: what else goes on then slows down both. The best of some rounds."""
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    seconds: dict[str, list[float]] = {"default": [], "onednn": []}
    for _ in range(ROUNDS):
        for name, setting in (("default", "highest"), ("onednn", "medium")):
            with precision(setting):
                began = time.perf_counter()
                torch.mm(left, right)
                seconds[name].append(time.perf_counter() - began)
    return {name: flops / min(found) / 1e9 for name, found in seconds.items()}


def worst_error() -> float:
    return max(relative_error(product, torch.float32, CPU) for product in CHECKED)


@contextmanager
def precision(setting: str) -> Iterator[None]:
    """Torch's precision of fp32 products, for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
