"""What is left of a score when the length of the response is taken away: the score less what that length predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.records import FloatArray

KNOTS = 5
ENOUGH = 50  # scored examples, from which the curve may bend


def residuals(values: FloatArray, lengths: npt.NDArray[Any]) -> FloatArray:
    """The residuals of a least-squares curve over the logarithm of the length.

    The curve is a cubic spline with knots at quantiles; a straight line where there are few examples or few lengths.

    Args:
        values: (examples,) scores, NaN where there is none.
        lengths: (examples,) response tokens.

    Returns:
        (examples,) in the score's unit; 0 is what a response of that length has on average. NaN where it was.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer

    out = np.full(len(values), np.nan)
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        return out
    x = np.log(np.maximum(np.asarray(lengths, dtype=np.float64)[there], 1.0))[:, None]
    bends = len(there) >= ENOUGH and len(np.unique(np.quantile(x, np.linspace(0, 1, KNOTS)))) == KNOTS
    curve = (
        make_pipeline(SplineTransformer(KNOTS, knots="quantile"), LinearRegression()) if bends else LinearRegression()
    )
    out[there] = values[there] - curve.fit(x, values[there]).predict(x)
    return out


def rank_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Spearman's, over the examples that have both; None where one of them does not vary."""
    from scipy.stats import spearmanr

    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return None
    return float(spearmanr(a[both], b[both]).statistic)
