"""Judge a head on unseen prompts: does it separate the tiers better than response length does?

Intervals come from a bootstrap over prompts. A resample is a weight per prompt, the number of times it was drawn; the
weighted AUCs of all resamples share one sort of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from tithe.errors import DataError
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import LEAST_PROMPTS, Rows
from tithe.lab.heads.tier_states import TierStates

if TYPE_CHECKING:
    import pyarrow as pa

    from tithe.engine.heads.base import StateHead

BINS = 10  # of the calibration error
LEVEL = 0.95
Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
CHUNK = 1 << 22  # weights in memory at once


def judge(
    margins: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike,
    lengths: npt.ArrayLike,
    nlls: npt.ArrayLike,
    *,
    seed: int,
    resamples: int = 2000,
) -> HeadReport:
    """Judge margins against labels, next to response length and likelihood by themselves.

    Args:
        margins: (responses,) of the head.
        labels: (responses,) 1 for the high tier, 0 for the low one.
        groups: (responses,) prompt of each; the bootstrap resamples these.
        lengths: (responses,) tokens.
        nlls: (responses,) mean NLL under the model.
        seed: random seed of the resamples.
        resamples: how many.

    Raises:
        DataError: arrays of different lengths, values that are not finite, or fewer than five prompts of a tier.
    """
    values = {"head": floats(margins), "length": floats(lengths), "nll": floats(nlls)}
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_enough(values, tiers, prompts)
    alone = {name: auc_alone(values[name], tiers) for name in ("length", "nll")}
    values["length"] *= 1 if alone["length"].higher else -1  # compare with length in its better direction
    auc = float(roc_auc_score(tiers, values["head"]))
    drawn = resampled_aucs(
        {name: values[name] for name in ("head", "length")}, tiers, prompts, seed=seed, resamples=resamples
    )
    within, within_prompts = auc_within(values["head"], tiers, prompts)
    slope, intercept = recalibrate(values["head"], tiers)
    chances = expit(values["head"])
    return HeadReport(
        high=int((tiers == 1).sum()),
        low=int((tiers == 0).sum()),
        prompts=len(np.unique(prompts)),
        auc=interval(auc, drawn["head"]),
        # The same resamples for both, so that what makes a resample easy cancels out.
        over_length=interval(auc - alone["length"].auc, drawn["head"] - drawn["length"]),
        length_rho=rank_correlation(values["head"], floats(lengths)),
        within=within,
        within_prompts=within_prompts,
        brier=float(brier_score_loss(tiers, chances)),
        ece=calibration_error(chances, tiers),
        slope=slope,
        intercept=intercept,
        **alone,
    )


def floats(values: npt.ArrayLike) -> Floats:
    return np.array(values, dtype=np.float64)


def demand_enough(values: dict[str, Floats], labels: Array, groups: Array) -> None:
    """Check that there is enough to judge by.

    Raises:
        DataError: there is not, or the arrays do not fit together.
    """
    sizes = {name: len(one) for name, one in [*values.items(), ("labels", labels), ("prompts", groups)]}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{n} {name}" for name, n in sizes.items())
        raise DataError(f"arrays of different lengths do not belong together: {told}")
    for name, one in values.items():
        if not np.isfinite(one).all():
            raise DataError(
                f"{int((~np.isfinite(one)).sum())} of {len(one)} responses have a {name} value that is not finite"
            )
    if not np.isin(labels, (0, 1)).all():
        raise DataError("a label is 1 for the high tier or 0 for the low one, and nothing else")
    for label, tier in ((1, "high"), (0, "low")):
        there = len(np.unique(groups[labels == label]))
        if there < LEAST_PROMPTS:
            raise DataError(
                f"{there} prompts with a {tier}-tier response are too few to judge a head: it needs {LEAST_PROMPTS}",
                hint="label more prompts, or give the test side a larger share",
            )


def auc_alone(values: Floats, labels: Array) -> Alone:
    """Return the AUC of one number of a response, in its better direction."""
    auc = float(roc_auc_score(labels, values))
    return Alone(max(auc, 1 - auc), auc >= 0.5)


def interval(value: float, drawn: Floats) -> Interval:
    """Return a value with the interval of its resamples."""
    # A resample may have one tier only, and then has no AUC.
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Return the Spearman correlation; None if a side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def auc_within(values: Floats, labels: Array, groups: Array) -> tuple[float | None, int]:
    """Return the mean AUC within prompts that have both tiers, and the number of such prompts."""
    order = np.argsort(groups, kind="stable")
    starts = np.unique(groups[order], return_index=True)[1][1:]
    shares = []
    for rows in np.split(order, starts):
        high, low = values[rows][labels[rows] == 1], values[rows][labels[rows] == 0]
        if len(high) and len(low):
            apart = high[:, None] - low  # (high, low) pairs
            shares.append(((apart > 0) + (apart == 0) / 2).mean())
    return (float(np.mean(shares)) if shares else None), len(shares)


def recalibrate(margins: Floats, labels: Array) -> tuple[float, float]:
    """Return slope and intercept of a logistic regression of the labels on the margins.

    A weak penalty keeps the slope finite if the margins separate the tiers perfectly.
    """
    scale = margins.std() or 1.0  # so that the penalty does not depend on the unit of the margins
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(margins[:, None] / scale, labels)
    return float(fit.coef_[0, 0] / scale), float(fit.intercept_[0])


def calibration_error(chances: Floats, labels: Array) -> float:
    """Return the expected calibration error: |mean probability - share of high| per bin, weighted by bin size."""
    bins = np.minimum((chances * BINS).astype(np.int64), BINS - 1)  # a probability of 1 is in the last bin
    return float(np.abs(np.bincount(bins, weights=chances - labels, minlength=BINS)).sum() / len(chances))


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Alone:
    """How well one number of a response separates the tiers without a head.

    Args:
        auc: in the better direction, so at least 0.5.
        higher: whether a higher number means the high tier.
    """

    auc: float
    higher: bool


@dataclass(frozen=True)
class HeadReport:
    """How well a head separates the tiers.

    Args:
        high: responses of the high tier; low: of the low one.
        prompts: distinct prompts.
        auc: of the margins.
        length: of the number of response tokens by itself; nll: of the model's likelihood by itself.
        over_length: AUC of the head minus AUC of length, on the same resamples.
        length_rho: Spearman correlation of margin and length; None if one is constant.
        within: mean AUC within prompts that have both tiers; None without such prompts.
        within_prompts: how many prompts have both tiers.
        brier: mean squared error of the probability; ece: expected calibration error over ten bins.
        slope: of a logistic recalibration of the margins, 1 is calibrated; intercept: 0 is calibrated.
    """

    high: int
    low: int
    prompts: int
    auc: Interval
    length: Alone
    nll: Alone
    over_length: Interval
    length_rho: float | None
    within: float | None
    within_prompts: int
    brier: float
    ece: float
    slope: float
    intercept: float

    @property
    def better_than_length(self) -> bool:
        """Whether the whole interval of the difference is above 0."""
        return self.over_length.low > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {"better_than_length": self.better_than_length, **asdict(self)}

    def lines(self) -> list[str]:
        """Return the lines for a terminal, the verdict first."""
        worse = self.over_length.high < 0
        verdict = "better than" if self.better_than_length else "WORSE than" if worse else "NOT SHOWN TO BE BETTER than"
        longer, likely = ("longer", "shorter")[not self.length.higher], ("less", "more")[not self.nll.higher]
        rho = "undefined, all are equal" if self.length_rho is None else f"{self.length_rho:+.3f}"
        within = "no prompt has both tiers" if self.within is None else f"{self.within:.3f}"
        return [
            f"the head is {verdict} response length: AUC {self.auc.value:.3f}, length alone {self.length.auc:.3f}, "
            f"difference {self.over_length}",
            f"on {self.high + self.low} responses to {self.prompts} prompts: {self.high} high, {self.low} low",
            f"AUC of the head: {self.auc}",
            f"AUC of length alone: {self.length.auc:.3f}, {longer} is high",
            f"AUC of the model's likelihood alone: {self.nll.auc:.3f}, {likely} likely is high",
            f"Spearman correlation of margin and length: {rho}",
            f"AUC within prompts: {within} ({self.within_prompts} prompts with both tiers)",
            f"calibration: Brier score {self.brier:.3f}, expected error {self.ece:.3f}, slope {self.slope:.2f}, "
            f"intercept {self.intercept:+.2f}",
        ]


def weighted_aucs(values: Floats, labels: npt.NDArray[Any], weights: Floats) -> Floats:
    """Return the AUC of each resample: the share of (high, low) pairs in order, ties counting half.

    Args:
        values: (rows,).
        labels: (rows,) 1 for high.
        weights: (resamples, rows).

    Returns:
        (resamples,), NaN if a resample has one tier only.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])  # of each distinct value
    sorted_weights, high = weights[:, order], labels[order] == 1
    highs = np.add.reduceat(sorted_weights * high, starts, axis=1)  # (resamples, distinct values)
    lows = np.add.reduceat(sorted_weights * ~high, starts, axis=1)
    below = np.cumsum(lows, axis=1) - lows / 2  # low ones below each value, equal ones half
    pairs = highs.sum(1) * lows.sum(1)
    won = (highs * below).sum(1)
    return np.asarray(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def resampled_aucs(
    values: Mapping[str, Floats], labels: npt.NDArray[Any], groups: npt.NDArray[Any], *, seed: int, resamples: int
) -> dict[str, Floats]:
    """Return the AUCs of several values over the same resamples of prompts: (resamples,) each."""
    prompts, of_row = np.unique(groups, return_inverse=True)
    found: dict[str, list[Floats]] = {name: [] for name in values}
    for drawn in draw_prompts(len(prompts), len(of_row), seed, resamples):
        weights = drawn[:, of_row].astype(np.float64)  # (resamples, prompts) -> (resamples, rows)
        for name, one in values.items():
            found[name].append(weighted_aucs(one, labels, weights))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def draw_prompts(prompts: int, rows: int, seed: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each prompt is drawn, some resamples at a time: (resamples, prompts)."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // rows)  # resamples whose weights fit into memory
    for begin in range(0, resamples, step):
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(step, resamples - begin))


def judge_rows(
    states: TierStates, head: StateHead, rows: Rows, settings: HeadSettings
) -> tuple[HeadReport | None, pa.Table]:
    """Return the report of a head on some responses (None without any), and a table of its margins."""
    import pyarrow as pa

    margins = states.margins(head, rows.tolist())
    tiers, lengths, nlls = states.tiers, states.lengths[rows], states.nlls[rows]
    table = pa.table(
        {
            "id": [tiers.examples[i].id for i in rows.tolist()],
            "prompt": tiers.prompts[rows].tolist(),
            "tier": ["high" if label else "low" for label in tiers.labels[rows]],
            "margin": margins,
            "nll_given": nlls,
            "response_tokens": lengths,
        }
    )
    if not len(rows):
        return None, table
    there = ~(np.isnan(margins) | np.isnan(nlls))
    at = rows[there]
    report = judge(
        margins[there],
        tiers.labels[at],
        tiers.prompts[at],
        lengths[there],
        nlls[there],
        seed=settings.seed,
        resamples=settings.resamples,
    )
    return report, table
