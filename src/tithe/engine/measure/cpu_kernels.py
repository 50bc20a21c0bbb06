"""Which kernels multiply on a CPU: in fp32 torch's own choice or oneDNN's, and whether 16 bits pay at all.

oneDNN's are taken where they are faster and as true. A processor may have the instructions of bf16 or fp16 and torch no
kernel for them; then they take a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch

from tithe.engine.measure.matmul import MatmulShape, clocked, in_turns, operands, relative_error, single_threads

TRUE = 1e-6  # relative error up to which a product counts as fp32; bf16 is off by 3e-3
FASTER = 1.1  # times as fast as torch's own choice: less would not be worth other last bits
TIMED = MatmulShape(256, 768, 2048)  # rows of a pack x width x inner width of a small model
CHECKED = (
    MatmulShape(64, 768, 2048),
    MatmulShape(33, 511, 97),
    MatmulShape(8, 1024, 64),
)  # some kernels like even sizes only
ROUNDS = 4

RouteName: TypeAlias = Literal["default", "onednn"]
CPU = torch.device("cpu")
_before: list[str] = []  # torch's precision before it was changed here
HALF_TIMED = MatmulShape(256, 768, 768)  # less than a pack's, as it may be slow
HALF_CHECKED = MatmulShape(33, 511, 97)
HALF_ROUNDS = 4
HALF_SLOW = 0.25  # seconds after which a product needs no second round
HALF_TRUE = {torch.bfloat16: 1e-2, torch.float16: 1e-3}  # relative error of a product that rounds as the dtype does


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
        """Tell whether a route rounds as fp32 does."""
        return self.relative_error[name] <= TRUE

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
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
    """Return the route that an earlier part of the run took, where this machine has it and it is true."""
    if wanted in (None, route.name) or not route.gflops:
        return route
    if wanted == "onednn" and route.relative_error["onednn"] > TRUE:
        return route
    return replace(route, name=wanted, why="the run began with it")


def timed(left: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Return GFLOP/s of both routes: the best of some rounds."""
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    routes = {"default": "highest", "onednn": "medium"}
    clocks = {name: partial(clocked_at, setting, left, right) for name, setting in routes.items()}
    return {name: flops / min(found) / 1e9 for name, found in in_turns(clocks, ROUNDS).items()}


def clocked_at(setting: str, left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the seconds of a product at one of torch's settings."""
    with precision(setting):
        return clocked(left, right, 1)


def worst_error() -> float:
    return max(relative_error(product, torch.float32, CPU) for product in CHECKED)


@contextmanager
def precision(setting: str) -> Iterator[None]:
    """Set torch's precision of fp32 products for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class HalfSpeed:
    """What was found.

    Args:
        times: as fast as the faster route of fp32.
        relative_error: against float64.
        limit: above which products are not those of the dtype.
    """

    times: float
    relative_error: float
    limit: float

    @property
    def pays(self) -> bool:
        return self.times >= FASTER and self.relative_error <= self.limit

    def words(self, dtype: str) -> str:
        """Say why it does not pay."""
        if self.relative_error > self.limit:
            return f"products in {dtype} are off by {self.relative_error:.1e} on this CPU, more than it rounds"
        return f"{dtype} multiplies {self.times:.2g} times as fast as fp32 on this CPU, and rounds"


@cache
def probe_half(dtype: torch.dtype) -> HalfSpeed:
    """Multiply in both, in turns, in a fraction of a second; the best rounds count."""
    route = probe_fp32()
    setting = "medium" if route.name == "onednn" else torch.get_float32_matmul_precision()
    with torch.inference_mode(), single_threads(CPU):
        clocks = {
            kind: partial(clocked_at, setting, *operands(HALF_TIMED, kind, CPU)) for kind in (torch.float32, dtype)
        }
        best = {kind: min(found) for kind, found in in_turns(clocks, HALF_ROUNDS, HALF_SLOW).items()}
        error = relative_error(HALF_CHECKED, dtype, CPU)
    return HalfSpeed(best[torch.float32] / best[dtype], error, HALF_TRUE[dtype])
