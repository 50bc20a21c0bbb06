"""How far a model in fp8 is from itself in bf16, told from the first passes of a run."""

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

    held: Fp8Layers
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
    length = min(TRIAL[1], loaded.single_above or TRIAL[1])
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
    budget, padded = (1 if loaded.forward_path == "single" else budget), loaded.forward_path == "padded"
    found = np.empty(len(sample))
    for batch in make_batches(sample, budget=budget, padded=padded, single_above=loaded.single_above):
        nlls = loaded.read_on(loaded.forward_path, [sample[i] for i in batch.index])
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
