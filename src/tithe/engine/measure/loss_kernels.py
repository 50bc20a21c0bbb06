"""Choose the kernel from hidden states to likelihoods on a GPU: compiled, Liger's or cut-cross-entropy's.

All compute log-sum-exp(W h) - (W h)_target. The last two never write a logit; the compiled one writes the logits of
some rows in the model's dtype and reads them once, while the plain head writes them twice more in float32. Each
installed kernel is tried on the model's own output matrix when the model is loaded. The fastest one that is accurate
and gives the same bits each time is used; the run record says why the others are not. If there is none, the plain head
is run on a few rows at a time.
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

ROWS = 4096  # rows timed: about the response tokens of a batch on a GPU
CHECKED = 128  # rows compared with float32
ROUNDS = 3
FASTER = 1.05  # required speed-up over the plain head: less would not be worth a change of the last bits
# A kernel is accurate if its largest difference from float32 is at most ROUNDING times that of the plain head, or below
# EXACT nats: rounding may differ, the formula may not.
ROUNDING = 2.0
EXACT = 1e-4
OWN = "head as it is"  # the plain head's name in run records
LOGITS, LEAST_ROWS = 1 << 27, 256  # logits that the compiled kernel writes at a time: 270 MB in bf16
Nll: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]  # hidden, weight, targets -> (rows,)


def by_compiled(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute logits with the library's matmul and the rest with a compiled kernel that reads them once."""
    compiled = compiled_step()
    size = max(LEAST_ROWS, LOGITS // len(weight))
    parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    found = []
    for rows, wanted in parts:
        step = compiled if len(wanted) > 1 else log_sum_exp  # a single row would compile another, unchecked kernel
        found.append(step(torch.nn.functional.linear(rows, weight), wanted))
    return torch.cat(found)


@cache
def compiled_step() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return `log_sum_exp` compiled: once per dtype, for any number of rows and vocabulary size."""
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
    """The kernel that computes likelihoods from hidden states.

    Args:
        name: of the kernel; `head as it is` if no other is accurate and faster.
        milliseconds: of each kernel that ran, for `ROWS` rows.
        largest_difference: of each kernel from float32, in nats.
        refused: why other kernels were not chosen.
        weight: the output matrix, (vocabulary, dim).
        kernel: the function; None for the plain head.
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
        place = (
            self.weight.device
        )  # in a model spread over GPUs, tied embeddings and last states may be on different ones
        with on_device(place):
            return self.kernel(hidden.to(place), self.weight, targets.to(place)).float()


def choose_loss(
    linear: torch.nn.Linear,
    own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    candidates: Mapping[str, Nll] | None = None,
    begun: str | None = None,
) -> LossKernel:
    """Choose the fastest accurate kernel for likelihoods, measured on the model's own output matrix.

    Args:
        linear: the output matrix; the model's head must be just this product.
        own: the plain head: hidden states and targets to likelihoods.
        candidates: kernels by the name of their package; None for all known ones.
        begun: the kernel that a resumed run began with, or that the first device uses; None for the fastest.

    Raises:
        ModelError: `begun` is not accurate here, or not installed.
    """
    candidates = CANDIDATES if candidates is None else candidates
    if begun is not None:
        candidates = {name: kernel for name, kernel in candidates.items() if name == begun}
    if begun == OWN:
        return LossKernel(OWN)
    if linear.bias is not None:
        return LossKernel(OWN, refused=dict.fromkeys(candidates, "the output matrix has a bias"))
    weight = linear.weight.detach()
    hidden, targets = rows_like(weight)
    milliseconds, off, refused = dict[str, float](), dict[str, float](), dict[str, str]()
    with torch.inference_mode(), on_device(weight.device):
        truth = exact(hidden[:CHECKED], weight, targets[:CHECKED])
        kernels: dict[str, Nll] = {OWN: lambda hidden, _, targets: own(hidden, targets), **candidates}
        for name, kernel in kernels.items():
            try:
                found = [kernel(hidden, weight, targets) for _ in range(ROUNDS)]
                off[name] = difference(found[0], truth, len(targets))
                if not off[name] <= max(ROUNDING * off[OWN], EXACT):
                    refused[name] = f"off by {off[name]:.3g} nats from float32, the plain head by {off[OWN]:.3g}"
                elif name != OWN and not all(torch.equal(found[0], other) for other in found):
                    refused[name] = "its last bits change from call to call"
                else:
                    call = partial(kernel, hidden, weight, targets)  # compiled by now
                    milliseconds[name] = 1e3 * elapsed(call, weight.device, ROUNDS)
            except ModuleNotFoundError as error:
                refused[name] = f"`{error.name}` is not installed"
            except Exception as error:  # kernels refuse devices, dtypes and shapes with errors of many types
                if name == OWN:
                    raise
                refused[name] = f"{type(error).__name__}: {first_line(error)}"
    if begun is not None and begun not in milliseconds:
        raise ModelError(
            f"the run began with the likelihood kernel `{begun}`, which cannot be used here: "
            f"{refused.get(begun, 'unknown')}",
            hint="continue where it is installed, or start again in another run folder",
        )
    best = begun or min(milliseconds, key=lambda name: milliseconds[name])
    if begun is None and milliseconds[OWN] < FASTER * milliseconds[best]:
        best = OWN
    for name in milliseconds.keys() - {best, OWN}:
        refused[name] = f"{milliseconds[name]:.3g} ms where `{best}` takes {milliseconds[best]:.3g} ms"
    return LossKernel(best, milliseconds, off, refused, None if best == OWN else weight, candidates.get(best))


def rows_like(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make random states, as if after a norm, and targets that include the first and last id."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, weight.shape[1], generator=generator)
    targets = torch.randint(len(weight), (ROWS,), generator=generator)
    targets[:2] = torch.tensor([0, len(weight) - 1])
    return hidden.to(weight.device, weight.dtype), targets.to(weight.device)


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of a few rows in float32, in parts of the vocabulary: (rows,)."""
    wide, parts, wanted = hidden.float(), [], torch.zeros_like(targets, dtype=torch.float32)
    for start in range(0, len(weight), 1 << 14):
        logits = wide @ weight[start : start + (1 << 14)].float().T
        inside = (targets >= start) & (targets < start + logits.shape[1])
        place = (targets - start).clamp(0, logits.shape[1] - 1)[:, None]
        wanted = torch.where(inside, logits.gather(1, place)[:, 0], wanted)
        parts.append(logits.logsumexp(dim=1))
    return torch.stack(parts).logsumexp(dim=0) - wanted


def difference(found: torch.Tensor, truth: torch.Tensor, rows: int) -> float:
    """Return the largest difference in nats; infinite if the shape is wrong or a number is not finite."""
    if found.shape != (rows,):
        return float("inf")
    off = float((found[: len(truth)].float() - truth).abs().max())
    return off if off == off and bool(torch.isfinite(found).all()) else float("inf")
