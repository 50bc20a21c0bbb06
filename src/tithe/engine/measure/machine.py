"""The matmul peak of this machine, by dtype, route and cores: what a model's speed is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tithe.engine.devices import DTYPES, dtype_name
from tithe.engine.host import cpu_cores
from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName, precision, probe_fp32
from tithe.engine.measure.matmul import Product, Speed, affordable, measure
from tithe.engine.measure.shape import size

CPU_SQUARE = 1024
GPU_SQUARE = 8192
SECONDS = 0.2  # of each measurement


@dataclass(frozen=True)
class Peak:
    """One measurement.

    Args:
        speed: of a product in a dtype.
        route: of fp32 on a CPU; None for all else.
    """

    speed: Speed
    route: RouteName | None = None

    def as_dict(self) -> dict[str, Any]:
        speed = self.speed
        return {
            "dtype": dtype_name(speed.dtype),
            "route": self.route,
            "threads": speed.threads,
            "product": [speed.product.rows, speed.product.inner, speed.product.columns],
            "gflops": round(speed.best, 1),
            "gflops_median": round(speed.median, 1),
        }


@dataclass(frozen=True)
class Machine:
    """All measurements.

    Args:
        device: of them.
        cores: that this process may use; on a CPU each is measured alone and all together.
        peaks: measured.
        fp32: the choice between the routes of a CPU; None on a GPU.
    """

    device: torch.device
    cores: int
    peaks: Sequence[Peak]
    fp32: Fp32Route | None

    def best(self, dtype: torch.dtype, threads: int) -> Speed:
        """Return the fastest product in a dtype on so many cores, over shapes and true routes."""
        true = [peak.speed for peak in self.peaks if self.true(peak)]
        return max((one for one in true if (one.dtype, one.threads) == (dtype, threads)), key=lambda one: one.best)

    def true(self, peak: Peak) -> bool:
        return self.fp32 is None or peak.route is None or self.fp32.is_true(peak.route)

    @property
    def threads(self) -> int:
        """Count the products under way at once when the whole machine is at work."""
        return self.cores if self.device.type == "cpu" else 1


def measure_machine(device: torch.device, products: Sequence[Product]) -> Machine:
    """Multiply in every dtype; a dtype that the device does not know is left out.

    Args:
        device: where.
        products: of the shapes that matter to a model; one large square is added.
    """
    cores = cpu_cores()
    counts = sorted({1, cores}) if device.type == "cpu" else [1]
    side = CPU_SQUARE if device.type == "cpu" else GPU_SQUARE
    shapes = [*dict.fromkeys([*products, Product(side, side, side)])]
    route = probe_fp32() if device.type == "cpu" else None
    peaks = []
    for name, setting in routes(device, route):
        for dtype in dtypes(device) if name in (None, "default") else [torch.float32]:
            with precision(setting) if setting is not None and dtype == torch.float32 else nullcontext():
                for shape in shapes:
                    product = affordable(shape, dtype, device)
                    speeds = [measure(product, dtype, device, threads=n, seconds=SECONDS) for n in counts]
                    peaks += [Peak(speed, name if dtype == torch.float32 else None) for speed in speeds]
    return Machine(device, cores, peaks, route)


def routes(device: torch.device, route: Fp32Route | None) -> Iterator[tuple[RouteName | None, str | None]]:
    """Name and torch's setting of each route of fp32; one without a name where there is nothing to choose."""
    if route is None:
        yield None, None
        return
    yield "default", None if not route.gflops else "highest"
    if route.gflops:
        yield "onednn", "medium"


def dtypes(device: torch.device) -> list[torch.dtype]:
    """List the dtypes in which the device multiplies at all."""
    found = []
    for dtype in DTYPES.values():
        try:
            one = torch.ones(2, 2, dtype=dtype, device=device)
            torch.mm(one, one)
        except (RuntimeError, TypeError):
            continue
        found.append(dtype)
    return found


def products_of(config: Mapping[str, Any], rows: int) -> list[Product]:
    """Return the product that costs a decoder most: a pack's rows by its width by its inner width.

    Args:
        config: of the model.
        rows: tokens of a pack.
    """
    config = config.get("text_config") or config
    width = size(dict(config), "hidden_size", "n_embd", "d_model")
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim") or 4 * width
    return [Product(rows, width, int(inner))]
