"""From hidden states to likelihoods on a GPU: compiled, Liger's or cut-cross-entropy's, where true and faster.

All compute log-sum-exp(W h) - (W h)_target. The last two never write a logit; the compiled one writes those of some
rows in the model's dtype and reads them once, where the plain head writes them again in float32, twice. Each that
is there is tried on the model's own output matrix when the model is loaded. The fastest is taken that is true and gives
the same bits each time; why the others are not is kept for the run record. Without one the head is run as it is, some
rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeAlias

import torch

from tithe.engine.host import on_device
from tithe.engine.measure.matmul import elapsed
from tithe.engine.model_files import first_line
from tithe.errors import ModelError

ROWS = 4096  # that are timed: about the responses of a batch on a GPU
CHECKED = 128  # of them, held against float32
ROUNDS = 3
FASTER = 1.05  # times as fast as the plain head: less would not be worth other last bits
# A way is true whose largest difference from float32 is at most so many times that of the plain head, or below
# `EXACT` nats: rounding differs, the formula does not.
ROUNDING = 2.0
EXACT = 1e-4
OWN = "head as it is"  # the plain head, under the name that run records have for it
LOGITS, LEAST_ROWS = 1 << 27, 256  # that the compiled one writes at a time: 270 MB in bf16
Nll: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]  # hidden, weight, targets -> (rows,)


def by_compiled(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Multiply by the library, then torch.compile what follows: the logits of some rows are read once."""
    compiled = compiled_step()
    size = max(LEAST_ROWS, LOGITS // len(weight))
    parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    found = []
    for rows, wanted in parts:
        step = compiled if len(wanted) > 1 else log_sum_exp  # a single row would be a kernel of its own, never tried
        found.append(step(torch.nn.functional.linear(rows, weight), wanted))
    return torch.cat(found)


@cache
def compiled_step() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Compiled once for a dtype, for any numbers of rows and of ids."""
    compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(log_sum_exp, dynamic=True)
    return compiled


def log_sum_exp(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log p of each target in float32: (rows, vocabulary), (rows,) -> (rows,)."""
    wide = logits.float()
    return wide.logsumexp(dim=1) - wide.gather(1, targets[:, None])[:, 0]


def by_liger(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    functional = import_module("liger_kernel.transformers.functional")
    out: torch.Tensor = functional.liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none")
    return out


def by_cce(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = import_module("cut_cross_entropy").linear_cross_entropy(
        hidden, weight, targets, reduction="none"
    )
    return out


CANDIDATES: dict[str, Nll] = {"torch.compile": by_compiled, "liger-kernel": by_liger, "cut-cross-entropy": by_cce}


@dataclass(frozen=True)
class LossKernel:
    """How likelihoods are made of hidden states.

    Args:
        name: of what was taken; `head as it is` where no other is true and faster.
        milliseconds: of each way that ran, for `ROWS` rows.
        largest_difference: of each way from float32, in nats.
        refused: why others were not taken.
        weight: the output matrix, (vocabulary, dim).
        way: what was taken; None for the plain head.
    """

    name: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    largest_difference: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    weight: torch.Tensor | None = field(default=None, repr=False)
    kernel: Nll | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        out = asdict(LossKernel(self.name, self.milliseconds, self.largest_difference, self.refused))
        return {name: value for name, value in out.items() if name not in ("weight", "kernel")}

    def nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return -log p of each target, in float32: (rows, dim), (rows,) -> (rows,)."""
        assert self.kernel is not None and self.weight is not None
        place = self.weight.device  # of a model that is spread, tied embeddings may be elsewhere than the last states
        with on_device(place):
            return self.kernel(hidden.to(place), self.weight, targets.to(place)).float()


def choose_loss(
    linear: torch.nn.Linear,
    own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    candidates: Mapping[str, Nll] | None = None,
    begun: str | None = None,
) -> LossKernel:
    """Choose the fastest true way from hidden states to likelihoods, on the model's own output matrix.

    Args:
        linear: the output matrix, to which alone the head comes down.
        own: the plain head: hidden states and targets to likelihoods.
        candidates: by the name of their package; None for all that are known.
        begun: what a run took that is taken up again, or read on another device; None for the fastest.

    Raises:
        ModelError: what the run began with is not true here, or not installed.
    """
    candidates = CANDIDATES if candidates is None else candidates
    if begun is not None:
        candidates = {name: way for name, way in candidates.items() if name == begun}
    if begun == OWN:
        return LossKernel(OWN)
    if linear.bias is not None:
        return LossKernel(OWN, refused=dict.fromkeys(candidates, "the output matrix has a bias"))
    weight = linear.weight.detach()
    hidden, targets = rows_like(weight)
    milliseconds, off, refused = dict[str, float](), dict[str, float](), dict[str, str]()
    with torch.inference_mode(), on_device(weight.device):
        truth = exact(hidden[:CHECKED], weight, targets[:CHECKED])
        ways: dict[str, Nll] = {OWN: lambda hidden, _, targets: own(hidden, targets), **candidates}
        for name, way in ways.items():
            try:
                found = [way(hidden, weight, targets) for _ in range(ROUNDS)]
                off[name] = difference(found[0], truth, len(targets))
                if not off[name] <= max(ROUNDING * off[OWN], EXACT):
                    refused[name] = f"off by {off[name]:.3g} nats from float32, the head as it is by {off[OWN]:.3g}"
                elif name != OWN and not all(torch.equal(found[0], other) for other in found):
                    refused[name] = "its last bits change from call to call"
                else:
                    call = partial(way, hidden, weight, targets)  # compiled by now
                    milliseconds[name] = 1e3 * elapsed(call, weight.device, ROUNDS)
            except ModuleNotFoundError as error:
                refused[name] = f"`{error.name}` is not installed"
            except Exception as error:  # kernels refuse devices, dtypes and shapes in their own ways
                if name == OWN:
                    raise
                refused[name] = f"{type(error).__name__}: {first_line(error)}"
    if begun is not None and begun not in milliseconds:
        raise ModelError(
            f"the run began with likelihoods by `{begun}`, which is not taken here: {refused.get(begun, 'unknown')}",
            hint="go on where it is, or begin anew in another run folder",
        )
    best = begun or min(milliseconds, key=lambda name: milliseconds[name])
    if begun is None and milliseconds[OWN] < FASTER * milliseconds[best]:
        best = OWN
    for name in milliseconds.keys() - {best, OWN}:
        refused[name] = f"{milliseconds[name]:.3g} ms where `{best}` takes {milliseconds[best]:.3g} ms"
    return LossKernel(best, milliseconds, off, refused, None if best == OWN else weight, candidates.get(best))


def rows_like(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make random states as after a norm, and targets that include the vocabulary's first and last."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, weight.shape[1], generator=generator)
    targets = torch.randint(len(weight), (ROWS,), generator=generator)
    targets[:2] = torch.tensor([0, len(weight) - 1])
    return hidden.to(weight.device, weight.dtype), targets.to(weight.device)


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of a few rows from products in float32, the vocabulary in parts: (rows,)."""
    wide, parts, wanted = hidden.float(), [], torch.zeros_like(targets, dtype=torch.float32)
    for start in range(0, len(weight), 1 << 14):
        logits = wide @ weight[start : start + (1 << 14)].float().T
        inside = (targets >= start) & (targets < start + logits.shape[1])
        place = (targets - start).clamp(0, logits.shape[1] - 1)[:, None]
        wanted = torch.where(inside, logits.gather(1, place)[:, 0], wanted)
        parts.append(logits.logsumexp(dim=1))
    return torch.stack(parts).logsumexp(dim=0) - wanted


def difference(found: torch.Tensor, truth: torch.Tensor, rows: int) -> float:
    """Return the largest difference in nats; infinite for another shape, or NaN."""
    if found.shape != (rows,):
        return float("inf")
    off = float((found[: len(truth)].float() - truth).abs().max())
    return off if off == off and bool(torch.isfinite(found).all()) else float("inf")
