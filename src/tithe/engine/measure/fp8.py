"""Linear layers with weights in fp8 (e4m3): one scale per output row, activations quantised per token.

The scheme is that of vLLM's and llm-compressor's "FP8 dynamic": w = s_w q_w with s_w = max |w| / 448 per row, the same
per token for activations on the fly, the product summed in fp32 and handed on in bf16. What is no product of a
block stays as it is: embeddings, norms, the output head, and the routers of mixtures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.batches import Batch, make_batches
from tithe.engine.devices import E4M3
from tithe.engine.measure.fused import fuse
from tithe.engine.model import LoadedModel
from tithe.engine.sources import first_line
from tithe.errors import ModelError
from tithe.records import Pass

LARGEST = torch.finfo(E4M3).max  # 448
EVEN = 16  # those units want both sides of a matrix in multiples of it
ROUTERS = ("gate", "router")  # a mixture's choice of experts; the gate of a gated block is called `gate_proj`
TINY = 1e-12  # scale of a row of zeros


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows to e4m3 times a scale each: (rows, dim) -> (rows, dim) e4m3, (rows, 1) float32.

    A row that holds infinity or NaN comes out as NaN, not as large numbers.
    """
    wide = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # the units read row by row
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(TINY)
    return wide.div_(scale).clamp_(-LARGEST, LARGEST).to(E4M3), scale


class Fp8Linear(torch.nn.Module):
    """A linear layer whose weights are e4m3 with one scale per output row.

    Args:
        linear: what it stands for; its weights are not kept.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantised(linear.weight.detach())
        self.weight = torch.nn.Parameter(weight, requires_grad=False)  # (out, in)
        self.register_buffer("scale", scale.T.contiguous())  # (1, out)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute (..., in) -> (..., out), in the dtype of `hidden`."""
        rows, scale = quantised(hidden.flatten(0, -2))
        out: torch.Tensor = torch._scaled_mm(
            rows, self.weight.T, scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        if self.bias is not None:
            out = out + self.bias
        return out.view(*hidden.shape[:-1], self.out_features).to(hidden.dtype)


@dataclass(frozen=True)
class Held:
    """What is in fp8.

    Args:
        layers: linear layers in fp8.
        left: linear layers of the blocks that stay in bf16: routers, and sides that are no multiple of 16.
        parameters: of all the model's, those in fp8.
        of: all of them.
        bytes_before: of the weights in bf16.
        bytes_after: of the weights now.
    """

    layers: int
    left: int
    parameters: int
    of: int
    bytes_before: int
    bytes_after: int


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Yield the linear layers inside a model's blocks, each with its parent and its name there."""
    blocks = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    seen: set[int] = set()
    for part in (inner for each in blocks for inner in each.modules()):
        for name, child in part.named_children():
            if type(child) is torch.nn.Linear and id(child) not in seen:
                seen.add(id(child))
                yield part, name, child


def fits(name: str, linear: torch.nn.Linear) -> bool:
    return name not in ROUTERS and linear.in_features % EVEN == 0 and linear.out_features % EVEN == 0


def weight_bytes(model: torch.nn.Module) -> int:
    """Count the bytes of parameters and buffers."""
    return sum(part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers()))


def hold_in_fp8(loaded: LoadedModel) -> Held:
    """Put e4m3 in place of the weights of a model in bf16, layer by layer, so that at most one stands twice.

    Raises:
        ModelError: no layer of it can be held so.
    """
    model, head = loaded.model, loaded.model.get_output_embeddings()
    before, found = weight_bytes(model), [one for one in linear_layers(model) if one[2] is not head]
    taken = [(part, name) for part, name, linear in found if fits(name, linear)]
    if not taken:
        raise ModelError(
            f"`{loaded.source.name}` has no linear layer in its blocks that fp8 can hold",
            hint="`--dtype bf16`; layers of other kinds, such as fused experts, stay in bf16",
        )
    left = len(found) - len(taken)
    del found  # else all the bf16 weights would be held until the end
    for part, name in taken:
        setattr(part, name, Fp8Linear(getattr(part, name)))
    quantities = [w.numel() for w in model.parameters() if w.dtype == E4M3]
    return Held(len(taken), left, sum(quantities), loaded.parameters, before, weight_bytes(model))


SAMPLE = 128  # passes that are read in both
SAMPLE_TOKENS = 32_768  # of them at most, and one pass at least
BATCH = 4096  # tokens that are read together, at the most
TRIAL = (32, 64)  # passes, and tokens of each, that decide about compiled parts
# Compiled parts are taken whose mean difference from bf16 is at most so many times that without them, and so much.
MORE, FLOOR = 1.25, 1e-3
Means = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fp8Error:
    """Differences of the mean NLL of a response, fp8 against bf16, in nats a token.

    Args:
        passes: that were read in both.
        tokens: of their responses.
        mean: of the absolute differences.
        largest: of them.
        shift: mean difference with its sign: how much likelier (below 0) or less likely fp8 finds all of them.
        rank_correlation: Spearman's, of the means; None for fewer than 3 passes or where all are equal.
    """

    passes: int
    tokens: int
    mean: float
    largest: float
    shift: float
    rank_correlation: float | None


@dataclass(frozen=True)
class Fp8:
    """What is in fp8, and how far it is from bf16."""

    held: Held
    error: Fp8Error

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        return {**asdict(self.held), "error_against_bf16": asdict(self.error)}

    def words(self) -> str:
        held, error = self.held, self.error
        rank = "" if error.rank_correlation is None else f", rank correlation {error.rank_correlation:.4f}"
        return (
            f"fp8: {held.layers} linear layers, {held.parameters / held.of:.0%} of the weights, "
            f"{held.bytes_after / 1e9:.3g} GB instead of {held.bytes_before / 1e9:.3g} GB; "
            f"against bf16 on {error.passes} passes the mean NLL differs by {error.mean:.3g} on average "
            f"and {error.largest:.3g} at most{rank}"
        )


def take_fp8(
    loaded: LoadedModel, passes: Sequence[Pass], batches: Sequence[Batch], *, budget: int, compiled: bool = False
) -> Fp8:
    """Let the model in bf16 answer a sample, hold its weights in fp8, and let it answer again.

    Args:
        loaded: in bf16; changed in place.
        passes: of the run.
        batches: what of them is going to be read.
        budget: tokens that may be read together.
        compiled: compile parts of it, and the fp8 layers. Rounded otherwise, an activation may fall on the next e4m3
            number, so these are held against bf16 as well: they are taken where they are hardly further from it, on
            passes that are the same for every run, as one that goes on must do as it began.

    Raises:
        ModelError: fp8 cannot hold the model, or it does not answer with finite numbers then.
    """
    sample, budget = sampled(passes, batches), min(BATCH, budget)
    trial = trial_passes(loaded) if compiled else []
    before, tried = means(loaded, sample, budget), means(loaded, trial, budget)
    held = hold_in_fp8(loaded)
    if compiled:
        plain = distance(loaded, trial, tried, budget).mean

        def wrong() -> str | None:
            off = distance(loaded, trial, tried, budget).mean
            return (
                None if off <= MORE * plain + FLOOR else f"off from bf16 by {off:.3g} nats, and by {plain:.3g} without"
            )

        fuse(loaded, wrong=wrong)
    return Fp8(held, distance(loaded, sample, before, budget))


def trial_passes(loaded: LoadedModel) -> list[Pass]:
    """Make random ids, always the same, that decide whether compiled parts are taken."""
    length = min(TRIAL[1], loaded.alone_above or TRIAL[1])
    ids = np.random.default_rng(0).integers(0, min(loaded.vocabulary, 1000), (TRIAL[0], length))
    return [Pass(row, length // 4) for row in ids.astype(np.int32)]


def distance(loaded: LoadedModel, sample: Sequence[Pass], before: Means, budget: int) -> Fp8Error:
    """Compare the sample's answers with those in bf16.

    Raises:
        ModelError: it is not answered, or not with finite numbers.
    """
    try:
        after = means(loaded, sample, budget)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a kernel's, or of a model that looks at the dtype of its weights
        raise ModelError(
            f"`{loaded.source.name}` cannot be read in fp8: {first_line(error)}", hint="`--dtype bf16`"
        ) from error
    there = np.isfinite(before)
    lost = there & ~np.isfinite(after)
    if lost.any():
        raise ModelError(
            f"`{loaded.source.name}` gives no finite likelihood in fp8 for {int(lost.sum())} of {len(sample)} passes",
            hint="`--dtype bf16`",
        )
    tokens = sum(len(one.ids) - max(one.start, 1) for one, known in zip(sample, there, strict=True) if known)
    return compare(before[there], after[there], tokens)


def sampled(passes: Sequence[Pass], batches: Sequence[Batch]) -> list[Pass]:
    """Choose some of the passes that have something to score, spread evenly, in their own order."""
    rows = sorted({i for batch in batches for i in batch.index if len(passes[i].ids) > max(passes[i].start, 1)})
    places = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int))
    chosen = [passes[rows[place]] for place in places]
    tokens = np.cumsum([len(one.ids) for one in chosen])
    return chosen[: max(1, int(np.searchsorted(tokens, SAMPLE_TOKENS, side="right")))]


def means(loaded: LoadedModel, sample: Sequence[Pass], budget: int = BATCH) -> Means:
    """Return the mean NLL of each pass, read in small batches, the same ones every time."""
    budget, padded = (1 if loaded.road == "single" else budget), loaded.road == "padded"
    found = np.empty(len(sample))
    for batch in make_batches(sample, budget=budget, padded=padded, alone_above=loaded.alone_above):
        nlls = loaded.along(loaded.road, [sample[i] for i in batch.index])
        found[list(batch.index)] = [nll.mean(dtype=np.float64) for nll in nlls]
    return found


def compare(before: Means, after: Means, tokens: int) -> Fp8Error:
    """Return the differences of means in the same order."""
    apart = after - before
    return Fp8Error(
        len(apart),
        tokens,
        float(np.abs(apart).mean()) if len(apart) else 0.0,
        float(np.abs(apart).max(initial=0.0)),
        float(apart.mean()) if len(apart) else 0.0,
        rank_correlation(before, after),
    )


def rank_correlation(before: Means, after: Means) -> float | None:
    from scipy.stats import spearmanr

    if len(before) < 3 or np.ptp(before) == 0 or np.ptp(after) == 0:
        return None
    return float(spearmanr(before, after).statistic)
