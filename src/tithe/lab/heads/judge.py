"""An honest report of a head on prompts that it never saw: is it better than the length of the response?"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from tithe.errors import DataError
from tithe.lab.heads.report import Alone, HeadReport, Interval
from tithe.lab.heads.resampling import Floats, resampled_aucs

LEAST = 5  # prompts of each tier; fewer give no interval worth the name
BINS = 10
LEVEL = 0.95
Array: TypeAlias = npt.NDArray[Any]


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
    """Judge margins against labels, beside what length and likelihood tell alone.

    Args:
        margins: of the head, one a response.
        labels: 1 for the high tier, 0 for the low one.
        groups: the prompt of each response; intervals resample these.
        lengths: response tokens.
        nlls: the model's mean NLL of the response.
        seed: of the resamples.
        resamples: how many.

    Raises:
        DataError: arrays that do not belong together, a number that is none, or fewer than five prompts of a tier.
    """
    values = {"head": floats(margins), "length": floats(lengths), "nll": floats(nlls)}
    tiers, prompts = np.asarray(labels), np.asarray(groups)
    demand_enough(values, tiers, prompts)
    alone = {name: told_alone(values[name], tiers) for name in ("length", "nll")}
    values["length"] *= 1 if alone["length"].higher else -1
    auc = float(roc_auc_score(tiers, values["head"]))
    drawn = resampled_aucs(
        {name: values[name] for name in ("head", "length")}, tiers, prompts, seed=seed, resamples=resamples
    )
    within, within_prompts = auc_within(values["head"], tiers, prompts)
    slope, intercept = recalibrated(values["head"], tiers)
    chances = expit(values["head"])
    return HeadReport(
        high=int((tiers == 1).sum()),
        low=int((tiers == 0).sum()),
        prompts=len(np.unique(prompts)),
        auc=interval(auc, drawn["head"]),
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
    """Raises: DataError, where nothing can be judged."""
    sizes = {name: len(one) for name, one in [*values.items(), ("labels", labels), ("prompts", groups)]}
    if len(set(sizes.values())) > 1:
        raise DataError(f"these do not belong together: {', '.join(f'{n} {name}' for name, n in sizes.items())}")
    for name, one in values.items():
        if not np.isfinite(one).all():
            raise DataError(f"{int((~np.isfinite(one)).sum())} of {len(one)} responses have no {name} number")
    if not np.isin(labels, (0, 1)).all():
        raise DataError("a label is 1 for the high tier or 0 for the low one, and nothing else")
    for label, tier in ((1, "high"), (0, "low")):
        there = len(np.unique(groups[labels == label]))
        if there < LEAST:
            raise DataError(
                f"{there} prompts with a {tier}-tier response are too few to judge a head, it takes {LEAST}",
                hint="label more prompts, or give the test side a larger share",
            )


def told_alone(values: Floats, labels: Array) -> Alone:
    auc = float(roc_auc_score(labels, values))
    return Alone(max(auc, 1 - auc), auc >= 0.5)


def interval(value: float, drawn: Floats) -> Interval:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def rank_correlation(a: Floats, b: Floats) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def auc_within(values: Floats, labels: Array, groups: Array) -> tuple[float | None, int]:
    """The mean over prompts with both tiers of the share of (high, low) pairs in order, and how many there are."""
    order = np.argsort(groups, kind="stable")
    starts = np.unique(groups[order], return_index=True)[1][1:]
    shares = []
    for rows in np.split(order, starts):
        high, low = values[rows][labels[rows] == 1], values[rows][labels[rows] == 0]
        if len(high) and len(low):
            apart = high[:, None] - low
            shares.append(((apart > 0) + (apart == 0) / 2).mean())
    return (float(np.mean(shares)) if shares else None), len(shares)


def recalibrated(margins: Floats, labels: Array) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of the labels on the margins.

    A weak penalty keeps the slope finite where the margins tell the tiers apart without fault.
    """
    scale = margins.std() or 1.0
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(margins[:, None] / scale, labels)
    return float(fit.coef_[0, 0] / scale), float(fit.intercept_[0])


def calibration_error(chances: Floats, labels: Array) -> float:
    """The mean distance of probability and truth over ten equally wide bins, weighed by their sizes."""
    bins = np.minimum((chances * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(bins, weights=chances - labels, minlength=BINS)).sum() / len(chances))
