"""Two sets of trained models on the same items: tests that know of the items' chance alone.

They answer whether these very models differ on items like these. Whether the way their data was chosen is better is
another question, which needs the seeds: `paired.mean_difference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from tithe.records import FloatArray

RESAMPLES = 9_999
BATCH = 1 << 22  # numbers held at once


@dataclass(frozen=True)
class ItemTest:
    """Items as the only source of chance; differences are means over the seeds.

    Args:
        p_sign_flip: two-sided permutation test that flips signs; exact for differences that are symmetric about 0.
        low: of the 95 % bootstrap interval (BCa; Efron 1987) of the mean difference.
        high: of it.
        p_mcnemar: per seed, exact (binomial) McNemar tests; None where values are not right or wrong.
        dz: mean difference in standard deviations of the differences (Cohen's d_z); None where they are all the same.
    """

    p_sign_flip: float
    low: float
    high: float
    p_mcnemar: tuple[float, ...] | None
    dz: float | None


def item_test(differences: FloatArray, right: bool, seed: int = 0) -> ItemTest:
    """Test the models as they are.

    Args:
        differences: (seeds, items) of one set of models minus the other, positive where the first is better.
        right: values were 0 or 1.
        seed: of the resamples.
    """
    mean = differences.mean(0)
    same = bool(np.ptp(mean) == 0)
    deviation = float(mean.std(ddof=1)) if len(mean) > 1 else 0.0
    low, high = (float(mean[0]),) * 2 if same else bootstrap_interval(mean, seed)
    return ItemTest(
        p_sign_flip=sign_flip(mean, seed),
        low=low,
        high=high,
        p_mcnemar=tuple(mcnemar(row) for row in differences) if right else None,
        dz=None if same or deviation == 0 else float(mean.mean()) / deviation,
    )


def sign_flip(mean: FloatArray, seed: int) -> float:
    """Two-sided p of the mean under random signs: exact for few items, of 9,999 draws for more."""
    if not mean.any():
        return 1.0
    found = stats.permutation_test(
        (mean,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def bootstrap_interval(mean: FloatArray, seed: int) -> tuple[float, float]:
    found = stats.bootstrap(
        (mean,),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),
        rng=np.random.default_rng(seed),
        method="BCa" if len(mean) <= 5000 else "percentile",  # its jackknife takes items x items numbers
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(differences: FloatArray) -> float:
    """Exact two-sided p: of the items that only one model has right, how many are the first one's."""
    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    return 1.0 if first + second == 0 else float(stats.binomtest(first, first + second).pvalue)
