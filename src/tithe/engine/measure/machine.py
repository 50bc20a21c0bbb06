"""Measure this machine's matmul peak by dtype, route and cores, to compare a model's speed with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from tithe.engine.devices import DTYPES, dtype_name
from tithe.engine.host import cpu_cores
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName, precision, probe_fp32
from tithe.engine.measure.matmul import MatmulShape, Speed, affordable, measure, synchronise
from tithe.engine.measure.shape import Window, size, windows

CPU_SQUARE = 1024
GPU_SQUARE = 8192
SECONDS = 0.2  # per measurement


@dataclass(frozen=True)
class Peak:
    """One measured speed.

    Args:
        speed: of a product in a dtype.
        route: the kernels, for fp32 on a CPU; None otherwise.
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
    """All measurements of one device.

    Args:
        device: the device.
        cores: cores that this process may use; on a CPU one core is measured, and all at once.
        peaks: the measurements.
        fp32: the choice between a CPU's routes; None on a GPU.
    """

    device: torch.device
    cores: int
    peaks: Sequence[Peak]
    fp32: Fp32Route | None

    def best(self, dtype: torch.dtype, threads: int) -> Speed:
        """Return the fastest product in a dtype on `threads` cores, over all shapes and accurate routes."""
        true = [peak.speed for peak in self.peaks if self.true(peak)]
        return max((one for one in true if (one.dtype, one.threads) == (dtype, threads)), key=lambda one: one.best)

    def true(self, peak: Peak) -> bool:
        """Tell whether a measurement's kernels are accurate."""
        return self.fp32 is None or peak.route is None or self.fp32.is_true(peak.route)

    @property
    def threads(self) -> int:
        """Return how many products run at once when the whole machine is busy."""
        return self.cores if self.device.type == "cpu" else 1


def measure_machine(device: torch.device, products: Sequence[MatmulShape]) -> Machine:
    """Measure products in every dtype that the device supports.

    Args:
        device: the device.
        products: shapes that matter to a model; one large square is added.
    """
    cores = cpu_cores()
    # One core and all at once: shared caches and lower clocks make all of them slower than one times their number.
    counts = sorted({1, cores}) if device.type == "cpu" else [1]
    side = CPU_SQUARE if device.type == "cpu" else GPU_SQUARE
    shapes = [*dict.fromkeys([*products, MatmulShape(side, side, side)])]
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
    """Yield the name and torch's precision setting of each fp32 route; (None, None) if there is no choice."""
    if route is None:
        yield None, None
        return
    yield "default", None if not route.gflops else "highest"
    if route.gflops:
        yield "onednn", "medium"


def dtypes(device: torch.device) -> list[torch.dtype]:
    """List the dtypes in which the device can multiply."""
    found = []
    for dtype in DTYPES.values():
        try:
            # Tried, not looked up: no torch function tells whether a device has a matmul for a dtype.
            one = torch.ones(2, 2, dtype=dtype, device=device)
            torch.mm(one, one)
        except (RuntimeError, TypeError):
            continue
        found.append(dtype)
    return found


def products_of(config: Mapping[str, Any], rows: int) -> list[MatmulShape]:
    """Return the product that costs a decoder most: a pack's rows x its width x its MLP's inner width.

    Args:
        config: of the model.
        rows: tokens per pack.
    """
    config = config.get("text_config") or config
    width = size(dict(config), "hidden_size", "n_embd", "d_model")
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim") or 4 * width
    return [MatmulShape(rows, width, int(inner))]


@dataclass
class Meter:
    """A counter of the work done over all batches.

    Args:
        device: of the model.
        bounds: attention windows to count keys for.
        backbone_seconds: time spent in the layers; 0 without a clock.
        head_seconds: time from hidden states to likelihoods; 0 without a clock.
        tokens: tokens that went through the layers, padding and fillers included.
    """

    device: torch.device
    bounds: Sequence[Window]
    backbone_seconds: float = 0.0
    head_seconds: float = 0.0
    tokens: int = 0
    _keys: list[torch.Tensor] = field(default_factory=list, repr=False)  # (windows,) of each batch

    @property
    def keys(self) -> dict[Window, int]:
        """Return the total number of keys that tokens see, by window."""
        if not self._keys:
            return dict.fromkeys(self.bounds, 0)
        return dict(zip(self.bounds, torch.stack(self._keys).sum(0).tolist(), strict=True))

    def count(self, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a batch; called as a hook before the backbone."""
        ids = named.get("input_ids", given[0] if given else None)
        if ids is None:  # a head that is run apart calls a stub with hidden states instead
            return
        self.tokens += ids.numel()
        seen = keys_seen(ids, named.get("position_ids"), named.get("attention_mask"))
        found = [(seen if window is None else seen.clamp(max=window)).sum() for window in self.bounds]
        if found:
            self._keys.append(torch.stack(found))

    def clocked(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Wrap a call so that its seconds are added to the attribute `name`."""

        def timed(*given: Any, **named: Any) -> Any:
            synchronise(self.device)  # else work queued earlier would be counted here
            began = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                synchronise(self.device)
                setattr(self, name, getattr(self, name) + time.perf_counter() - began)

        return timed


def keys_seen(ids: torch.Tensor, positions: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Return how many keys each token sees, its own included: (rows, tokens); 0 for padding.

    Args:
        ids: (rows, tokens).
        positions: (rows, tokens) each token's place in its own sequence; None if rows are sequences.
        mask: (rows, tokens) 0 for padding; None if there is no padding.
    """
    if positions is not None:
        return positions + 1
    if mask is not None:  # padding is on the right, so a token's position is the number of tokens up to it
        return mask.cumsum(1) * mask
    return torch.arange(1, ids.shape[1] + 1, device=ids.device).expand(ids.shape)


@contextmanager
def metered(loaded: LoadedModel, *, clock: bool = False) -> Iterator[Meter]:
    """Count what is read within the `with` block, and time it if `clock`; then only one pass may run at a time.

    On the forward path `single` the model's own forward runs as a whole: what it takes beyond the backbone counts as
    the head's time.
    """
    meter = Meter(loaded.device, [*windows(loaded.model.config.to_dict())])
    head, model = loaded.head, loaded.model
    backbone = model if head is None else head.backbone
    hook = backbone.register_forward_pre_hook(meter.count, with_kwargs=True)
    swapped: list[tuple[Any, str]] = []

    def swap(thing: Any, method: str, name: str) -> None:
        vars(thing)[method] = meter.clocked(getattr(thing, method), name)
        swapped.append((thing, method))

    whole = loaded.forward_path == "single" or head is None
    try:
        if clock:
            swap(backbone, "forward", "backbone_seconds")
            if not whole:
                swap(head, "nll", "head_seconds")
            elif head is not None:
                swap(model, "forward", "head_seconds")
        yield meter
    finally:
        hook.remove()
        for thing, method in swapped:
            del vars(thing)[method]
    if whole and head is not None:  # the model's forward was timed as a whole
        meter.head_seconds -= meter.backbone_seconds
