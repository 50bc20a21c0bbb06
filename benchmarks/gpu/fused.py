"""From hidden states to likelihoods: the engine's head beside ways that never write a matrix of float32 logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from clock import forget_peak, peak_gb, timed
from torch.nn.functional import linear

from tithe.engine.forward.output_head import OutputHead
from tithe.engine.measure.loss_kernels import CANDIDATES, OWN, log_sum_exp

ROWS = {"cuda": 8192, "cpu": 96}
TILE = {"cuda": 8192, "cpu": 64}  # columns of the vocabulary
CHUNKS = {"cuda": (512, 1024, 4096), "cpu": (32,)}
LEAST = {"cuda": 0.08, "cpu": 0.002}
CHECKED = 256  # rows held against float32
LIBRARIES = ("liger-kernel", "cut-cross-entropy")
Nll = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # hidden, weight, targets


def tile_step(
    logits: torch.Tensor, inside: torch.Tensor, highest: torch.Tensor, total: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One tile of the vocabulary into the running log-sum-exp; `inside` is where the target stands in this tile."""
    wide = logits.float()
    above = torch.maximum(highest, wide.amax(dim=1))
    total = total * (highest - above).exp() + (wide - above[:, None]).exp().sum(dim=1)
    there = (inside >= 0) & (inside < wide.shape[1])
    value = wide.gather(1, inside.clamp(0, wide.shape[1] - 1)[:, None])[:, 0]
    return above, total, torch.where(there, value, wanted)


def by_rows(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, step: Any, chunk: int
) -> torch.Tensor:
    """All of the vocabulary for a few rows; `step` makes their likelihoods of logits."""
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([step(linear(rows, weight), wanted) for rows, wanted in parts])


def by_tiles(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, step: Any, tile: int
) -> torch.Tensor:
    """All rows for a part of the vocabulary."""
    highest = hidden.new_full((len(hidden),), -1e30, dtype=torch.float32)
    total, wanted = torch.zeros_like(highest), torch.zeros_like(highest)
    for first, part in zip(range(0, len(weight), tile), weight.split(tile), strict=True):
        highest, total, wanted = step(linear(hidden, part), targets - first, highest, total, wanted)
    return highest + total.log() - wanted


def as_it_is(head: OutputHead) -> OutputHead:
    """The same head without a kernel of likelihoods."""
    plain = copy.copy(head)
    plain.loss = None
    return plain


def all_ways(head: OutputHead, device: torch.device) -> dict[str, Nll]:
    kind, plain = device.type, as_it_is(head)
    compiled = partial(torch.compile, dynamic=True, backend="inductor" if kind == "cuda" else "eager")
    rows, tiles = compiled(log_sum_exp), compiled(tile_step)
    return {
        OWN: lambda hidden, _weight, targets: plain.nll(hidden, targets),
        **{f"compiled, {n} rows": partial(by_rows, step=rows, chunk=n) for n in CHUNKS[kind]},
        f"compiled, tiles of {TILE[kind]}": partial(by_tiles, step=tiles, tile=TILE[kind]),
        **{name: CANDIDATES[name] for name in LIBRARIES},
    }


def other_heads(model: Any, head: OutputHead, measured: dict[str, dict[str, Any]]) -> dict[str, OutputHead]:
    """Heads that the engine is measured with besides: its own as it is, and the faster library's, if one ran."""
    ran = [name for name in LIBRARIES if "seconds" in measured[name]]
    best = sorted(ran, key=lambda name: measured[name]["seconds"])[:1]
    return {OWN: as_it_is(head), **{f"head by {name}": OtherHead(model, CANDIDATES[name]) for name in best}}


class OtherHead(OutputHead):
    """The engine's head with another way from hidden states to likelihoods; for models without caps and scales."""

    def __init__(self, model: Any, way: Nll) -> None:
        self.weight, self.way = model.get_output_embeddings().weight, way
        super().__init__(model)  # on a GPU it already asks for likelihoods

    def nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.way(hidden, self.weight, targets)


def compare(ways: Mapping[str, Nll], weight: torch.Tensor, peak: float) -> dict[str, dict[str, Any]]:
    """Of each way seconds, TFLOP/s, share of the peak, memory, and how far it is from float32 at most."""
    device = weight.device
    generator = torch.Generator(device).manual_seed(0)
    count = ROWS[device.type]
    hidden = torch.randn(count, weight.shape[1], device=device, dtype=weight.dtype, generator=generator)
    targets = torch.randint(len(weight), (count,), device=device, generator=generator)
    with torch.inference_mode():
        truth = log_sum_exp(hidden[:CHECKED].float() @ weight.float().T, targets[:CHECKED])
        return {name: one(way, hidden, weight, targets, truth, peak) for name, way in ways.items()}


def one(
    way: Nll, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, truth: torch.Tensor, peak: float
) -> dict[str, Any]:
    try:
        forget_peak(weight.device)
        before = peak_gb(weight.device)
        found = way(hidden, weight, targets)
        off = float((found[: len(truth)].float() - truth).abs().max())
        seconds = timed(lambda: way(hidden, weight, targets), weight.device, least=LEAST[weight.device.type])
    except ModuleNotFoundError as error:
        return {"not_run": f"`{error.name}` is not installed"}
    except Exception as error:  # a kernel's own; the others go on
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    done = 2e-12 * len(hidden) * weight.numel() / seconds
    after = peak_gb(weight.device)
    more = None if after is None or before is None else after - before
    return {"seconds": seconds, "tflops": done, "of_peak": done / peak, "more_gb": more, "largest_difference": off}
