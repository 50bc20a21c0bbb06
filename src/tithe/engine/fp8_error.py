"""How far a model in fp8 is from itself in bf16, told from the first passes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.engine.batching import Batch
from tithe.engine.forward import Wanted
from tithe.engine.fp8 import Held, hold_in_fp8
from tithe.engine.sources import first_line
from tithe.errors import ModelError
from tithe.records import Pass

if TYPE_CHECKING:
    from tithe.engine.model import LoadedModel

SAMPLE = 128  # passes that are read in both
SAMPLE_TOKENS = 32_768  # of them at most, and one pass at least
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
        """For the run record."""
        return {**asdict(self.held), "error_against_bf16": asdict(self.error)}

    def sentence(self) -> str:
        held, error = self.held, self.error
        rank = "" if error.rank_correlation is None else f", rank correlation {error.rank_correlation:.4f}"
        return (
            f"fp8: {held.layers} linear layers, {held.parameters / held.of:.0%} of the weights, "
            f"{held.bytes_after / 1e9:.3g} GB instead of {held.bytes_before / 1e9:.3g} GB; "
            f"against bf16 on {error.passes} passes the mean NLL differs by {error.mean:.3g} on average "
            f"and {error.largest:.3g} at most{rank}"
        )


def take_fp8(loaded: LoadedModel, passes: Sequence[Pass], batches: Sequence[Batch]) -> Fp8:
    """Let the model in bf16 answer a sample, hold its weights in fp8, and let it answer again.

    Args:
        loaded: in bf16; changed in place.
        passes: of the run.
        batches: what of them is going to be read.

    Raises:
        ModelError: fp8 cannot hold the model, or it does not answer with finite numbers then.
    """
    sample = sampled(passes, batches)
    before = means(loaded, sample)
    held = hold_in_fp8(loaded)
    try:
        after = means(loaded, sample)
    except RuntimeError as error:  # a kernel's, or of a model that looks at the dtype of its weights
        raise ModelError(
            f"`{loaded.source.name}` cannot be read in fp8: {first_line(error)}", hint="`--dtype bf16`"
        ) from error
    lost = np.isfinite(before) & ~np.isfinite(after)
    if lost.any():
        raise ModelError(
            f"`{loaded.source.name}` gives no finite likelihood in fp8 for {int(lost.sum())} of {len(sample)} passes",
            hint="`--dtype bf16`",
        )
    there = np.isfinite(before)
    tokens = sum(len(one.ids) - max(one.start, 1) for one, known in zip(sample, there, strict=True) if known)
    return Fp8(held, compare(before[there], after[there], tokens))


def sampled(passes: Sequence[Pass], batches: Sequence[Batch]) -> list[Pass]:
    """Some of the passes to be read that have something to score, spread evenly over them, in their own order."""
    rows = sorted({i for batch in batches for i in batch.index if len(passes[i].ids) > max(passes[i].start, 1)})
    places = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int))
    chosen = [passes[rows[place]] for place in places]
    tokens = np.cumsum([len(one.ids) for one in chosen])
    return chosen[: max(1, int(np.searchsorted(tokens, SAMPLE_TOKENS, side="right")))]


def means(loaded: LoadedModel, sample: Sequence[Pass]) -> Means:
    """Mean NLL of each, one pass at a time."""
    found = [loaded.along(loaded.road, [one], (), Wanted([True]))[0] for one in sample]
    return np.array([nll.astype(np.float64).mean() for nll in found])


def compare(before: Means, after: Means, tokens: int) -> Fp8Error:
    """The differences, of means in the same order."""
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
