"""Convert a model to fp8 and measure how far it is from bf16, on the first passes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.batches import Batch, make_batches
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.fp8 import Fp8Layers, hold_in_fp8
from tithe.engine.measure.fused import fuse
from tithe.engine.model_files import first_line
from tithe.errors import ModelError
from tithe.records import Pass

SAMPLE = 128  # passes read in both dtypes
SAMPLE_TOKENS = 32_768  # most tokens of the sample; it has at least one pass
BATCH = 4096  # most tokens per batch
TRIAL = (32, 64)  # number and length of the passes that decide about compiled parts
# Compiled parts are kept if their mean difference from bf16 is at most MORE times that without them, plus FLOOR nats.
MORE, FLOOR = 1.25, 1e-3
Means = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fp8Error:
    """The differences between fp8 and bf16 in a response's mean NLL, in nats per token.

    Args:
        passes: number of passes read in both dtypes.
        tokens: tokens of their responses.
        mean: mean absolute difference.
        largest: largest absolute difference.
        shift: mean signed difference: below 0, responses are likelier in fp8.
        rank_correlation: Spearman's, of the means; None for fewer than 3 passes or if all means are equal.
    """

    passes: int
    tokens: int
    mean: float
    largest: float
    shift: float
    rank_correlation: float | None


@dataclass(frozen=True)
class Fp8:
    """A model's conversion to fp8: its layers, and its error against bf16."""

    held: Fp8Layers
    error: Fp8Error

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        return {**asdict(self.held), "error_against_bf16": asdict(self.error)}

    def words(self) -> str:
        """Return the facts in a sentence, for the terminal."""
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
    """Read a sample in bf16, convert the model to fp8, and read the sample again.

    Args:
        loaded: a model in bf16; converted in place.
        passes: of the run.
        batches: batches of the passes that will be read.
        budget: tokens per batch.
        compiled: whether to compile parts of the model and its fp8 layers. A difference in rounding can move an
            activation to the next e4m3 number, so compiled parts are compared with bf16 too, and kept if they are
            hardly further from it than the others. The passes for this are the same in every run, so that a resumed
            run decides as it did at first.

    Raises:
        ModelError: the model cannot be converted, or then gives numbers that are not finite.
    """
    sample, budget = sampled(passes, batches), min(BATCH, budget)
    trial = trial_passes(loaded) if compiled else []
    before, tried = means(loaded, sample, budget), means(loaded, trial, budget)
    held = hold_in_fp8(loaded)
    if compiled:
        plain = distance(loaded, trial, tried, budget).mean  # fp8 without compiled parts

        def wrong() -> str | None:
            off = distance(loaded, trial, tried, budget).mean
            return (
                None if off <= MORE * plain + FLOOR else f"off from bf16 by {off:.3g} nats, and by {plain:.3g} without"
            )

        fuse(loaded, wrong=wrong)
    return Fp8(held, distance(loaded, sample, before, budget))


def trial_passes(loaded: LoadedModel) -> list[Pass]:
    """Make the passes that decide about compiled parts: random ids, the same every time."""
    length = min(TRIAL[1], loaded.single_above or TRIAL[1])
    ids = np.random.default_rng(0).integers(0, min(loaded.vocabulary, 1000), (TRIAL[0], length))
    return [Pass(row, length // 4) for row in ids.astype(np.int32)]


def distance(loaded: LoadedModel, sample: Sequence[Pass], before: Means, budget: int) -> Fp8Error:
    """Read the sample and compare it with its means in bf16.

    Raises:
        ModelError: reading fails, or gives numbers that are not finite.
    """
    try:
        after = means(loaded, sample, budget)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # from a kernel, or from a model that inspects its weights' dtype
        raise ModelError(
            f"`{loaded.source.name}` cannot be read in fp8: {first_line(error)}", hint="`--dtype bf16`"
        ) from error
    there = np.isfinite(before)  # passes that bf16 cannot read either are left out
    lost = there & ~np.isfinite(after)
    if lost.any():
        raise ModelError(
            f"`{loaded.source.name}` gives no finite likelihood in fp8 for {int(lost.sum())} of {len(sample)} passes",
            hint="`--dtype bf16`",
        )
    tokens = sum(len(one.ids) - max(one.start, 1) for one, known in zip(sample, there, strict=True) if known)
    return compare(before[there], after[there], tokens)


def sampled(passes: Sequence[Pass], batches: Sequence[Batch]) -> list[Pass]:
    """Choose passes with scored tokens, evenly spread over those to read and in their order."""
    rows = sorted({i for batch in batches for i in batch.index if len(passes[i].ids) > max(passes[i].start, 1)})
    places = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int))
    chosen = [passes[rows[place]] for place in places]
    tokens = np.cumsum([len(one.ids) for one in chosen])
    return chosen[: max(1, int(np.searchsorted(tokens, SAMPLE_TOKENS, side="right")))]


def means(loaded: LoadedModel, sample: Sequence[Pass], budget: int = BATCH) -> Means:
    """Return the mean NLL of each pass, read in small batches that are the same every time: (passes,)."""
    budget, padded = (1 if loaded.forward_path == "single" else budget), loaded.forward_path == "padded"
    found = np.empty(len(sample))
    for batch in make_batches(sample, budget=budget, padded=padded, single_above=loaded.single_above):
        nlls = loaded.read_on(loaded.forward_path, [sample[i] for i in batch.index])
        found[list(batch.index)] = [nll.mean(dtype=np.float64) for nll in nlls]
    return found


def compare(before: Means, after: Means, tokens: int) -> Fp8Error:
    """Compare the means of the same passes before and after."""
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
    """Return Spearman's rank correlation, or None if it is undefined."""
    from scipy.stats import spearmanr

    if len(before) < 3 or np.ptp(before) == 0 or np.ptp(after) == 0:
        return None
    return float(spearmanr(before, after).statistic)
