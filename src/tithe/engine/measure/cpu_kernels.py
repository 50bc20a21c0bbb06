"""Choose the CPU's matmul kernels: torch's default or oneDNN's in fp32, and whether 16-bit dtypes are faster at all.

oneDNN's kernels are used if they are faster and as accurate. A processor may have instructions for bf16 or fp16 without
torch having a kernel for them; products then take a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch

from tithe.engine.measure.matmul import MatmulShape, clocked, in_turns, operands, relative_error, single_threads

TRUE = 1e-6  # largest relative error of an fp32 product; bf16's is 3e-3
FASTER = 1.1  # required speed-up over torch's default: less would not be worth a change of the last bits
TIMED = MatmulShape(256, 768, 2048)  # rows of a pack x width x inner width of a small model
CHECKED = (
    MatmulShape(64, 768, 2048),
    MatmulShape(33, 511, 97),
    MatmulShape(8, 1024, 64),
)  # some kernels like even sizes only
ROUNDS = 4

RouteName: TypeAlias = Literal["default", "onednn"]
CPU = torch.device("cpu")
_before: list[str] = []  # torch's precision setting before it was changed here; empty if it was not
HALF_TIMED = MatmulShape(256, 768, 768)  # smaller than `TIMED`, as 16-bit products may be very slow
HALF_CHECKED = MatmulShape(33, 511, 97)
HALF_ROUNDS = 4
HALF_SLOW = 0.25  # seconds: a product that takes longer is not timed again
HALF_TRUE = {torch.bfloat16: 1e-2, torch.float16: 1e-3}  # largest relative error that the dtype's own rounding explains


@dataclass(frozen=True)
class Fp32Route:
    """The kernels chosen for fp32 on a CPU.

    Args:
        name: `default`, torch's own choice (MKL in most builds), or `onednn`.
        why: the reason, in words.
        gflops: of each route on one core; empty if there is no choice.
        relative_error: of each route, against float64.
    """

    name: RouteName
    why: str
    gflops: Mapping[str, float] = field(default_factory=dict)
    relative_error: Mapping[str, float] = field(default_factory=dict)

    def is_true(self, name: RouteName) -> bool:
        """Tell whether a route is as accurate as fp32."""
        return self.relative_error[name] <= TRUE

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        return {**asdict(self), "gflops": {name: round(rate, 1) for name, rate in self.gflops.items()}}


def take_fastest_fp32(device: torch.device, wanted: RouteName | None = None) -> Fp32Route | None:
    """Set torch to the faster route for fp32 on a CPU, and return it; return None for other devices.

    The routes are timed once per process, in about 0.2 s. The setting applies to the whole process.

    Args:
        device: where the model will be; for a GPU an earlier setting is undone, as it would mean TF32 there.
        wanted: the route that a resumed run began with; it is kept if it is accurate, even if it is slower.
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
    """Restore torch's precision setting."""
    if _before:
        torch.set_float32_matmul_precision(_before.pop())


@cache
def probe_fp32() -> Fp32Route:
    """Time both routes and choose one; torch's setting stays as it is."""
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
            if torch.equal(left @ right, own):  # this build ignores the setting
                return Fp32Route("default", "both settings of torch give the same bits: there is one route", {}, errors)
        return choose(timed(left, right), errors)


def choose(gflops: Mapping[str, float], errors: Mapping[str, float]) -> Fp32Route:
    """Return oneDNN if it is accurate and faster by the margin, else torch's default."""
    times = gflops["onednn"] / gflops["default"]
    if errors["onednn"] > TRUE:
        why = f"oneDNN is not true fp32 here: relative error {errors['onednn']:.1e}"
        return Fp32Route("default", why, gflops, errors)
    if times < FASTER:
        return Fp32Route("default", f"oneDNN is {times:.2f} times as fast as torch's own choice", gflops, errors)
    return Fp32Route("onednn", f"{times:.2f} times as fast as torch's own choice, and as true", gflops, errors)


def held_to(route: Fp32Route, wanted: RouteName | None) -> Fp32Route:
    """Return the route that the run began with, if this machine has it and it is accurate; else the measured one."""
    if wanted in (None, route.name) or not route.gflops:
        return route
    if wanted == "onednn" and route.relative_error["onednn"] > TRUE:
        return route
    return replace(route, name=wanted, why="the run began with it")


def timed(left: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Return the GFLOP/s of both routes, best of some rounds."""
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    routes = {"default": "highest", "onednn": "medium"}
    clocks = {name: partial(clocked_at, setting, left, right) for name, setting in routes.items()}
    return {name: flops / min(found) / 1e9 for name, found in in_turns(clocks, ROUNDS).items()}


def clocked_at(setting: str, left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the seconds that a product takes at one of torch's precision settings."""
    with precision(setting):
        return clocked(left, right, 1)


def worst_error() -> float:
    """Return the largest relative error of fp32 products at torch's current setting."""
    return max(relative_error(product, torch.float32, CPU) for product in CHECKED)


@contextmanager
def precision(setting: str) -> Iterator[None]:
    """Set torch's precision of fp32 products within the `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class HalfSpeed:
    """The speed and accuracy of a 16-bit dtype on this CPU.

    Args:
        times: speed relative to the faster fp32 route.
        relative_error: against float64.
        limit: largest error that the dtype's own rounding explains.
    """

    times: float
    relative_error: float
    limit: float

    @property
    def pays(self) -> bool:
        return self.times >= FASTER and self.relative_error <= self.limit

    def words(self, dtype: str) -> str:
        """Return why the dtype does not pay."""
        if self.relative_error > self.limit:
            return f"products in {dtype} are off by {self.relative_error:.1e} on this CPU, more than it rounds"
        return f"{dtype} multiplies {self.times:.2g} times as fast as fp32 on this CPU, and rounds"


@cache
def probe_half(dtype: torch.dtype) -> HalfSpeed:
    """Compare a 16-bit dtype with fp32, in turns and within a fraction of a second; the best rounds count."""
    route = probe_fp32()
    setting = "medium" if route.name == "onednn" else torch.get_float32_matmul_precision()
    with torch.inference_mode(), single_threads(CPU):
        clocks = {
            kind: partial(clocked_at, setting, *operands(HALF_TIMED, kind, CPU)) for kind in (torch.float32, dtype)
        }
        best = {kind: min(found) for kind, found in in_turns(clocks, HALF_ROUNDS, HALF_SLOW).items()}
        error = relative_error(HALF_CHECKED, dtype, CPU)
    return HalfSpeed(best[torch.float32] / best[dtype], error, HALF_TRUE[dtype])
