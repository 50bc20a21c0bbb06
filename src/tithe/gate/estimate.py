"""Estimate shares of damage: in a pool, and in a selection from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

Floats: TypeAlias = npt.NDArray[np.float64]
QUANTILES = np.linspace(0.2, 0.9, 29)  # of the copies' margins, at which the two distributions are compared
DRAWS = 200  # of the bootstrap
LEVEL = 0.9  # of the interval


def damage_share(records: Floats, copies: Floats) -> float:
    """Estimate the share of damage among records from their margins and those of damaged copies.

    The records are a mixture: F = (1 - p) F_sound + p F_damaged, and F_sound >= 0, so p <= F(t) / F_damaged(t) at
    every threshold t. The least of these bounds is the estimate: low margins are mostly damage.

    Returns:
        A share, 0 to 1; an upper bound as far as damage in the pool has the margins that the copies have.
    """
    cuts = np.quantile(copies, QUANTILES)
    return float(min(1.0, min(np.mean(records <= cut) / np.mean(copies <= cut) for cut in cuts)))
