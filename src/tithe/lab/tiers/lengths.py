"""How long the responses of either tier are, and how well length alone would tell the tiers apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
TELLS = 0.7  # an AUC from which (or from 1 minus which down) length alone is a fair head


def auc(high: npt.ArrayLike, low: npt.ArrayLike) -> float:
    """The chance that a high value is above a low one, ties half; NaN where a side is empty."""
    above, below = np.asarray(high, dtype=np.float64), np.sort(np.asarray(low, dtype=np.float64))
    if not len(above) or not len(below):
        return float("nan")
    wins = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Five of them; none where there is no value."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values, dtype=np.float64), list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, found), strict=True))


def lengths(unit: str, high: Sequence[int], low: Sequence[int]) -> dict[str, Any]:
    """Quantiles of both tiers, and the AUC of length alone: above 0.5 the high ones are longer."""
    found = auc(high, low)
    return {
        "unit": unit,
        "high": quantiles(high),
        "low": quantiles(low),
        "auc": None if np.isnan(found) else found,
    }


def warning(found: Mapping[str, Any]) -> str | None:
    """What is to be said where a head could learn length and nothing else."""
    area = found["auc"]
    if area is None or 1 - TELLS < area < TELLS:
        return None
    longer = "high" if area > 0.5 else "low"
    return (
        f"length alone tells the tiers apart: AUC {area:.2f} in {found['unit']}, the {longer} tier is longer; "
        "a head may learn that and nothing else"
    )
