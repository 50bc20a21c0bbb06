"""What selectors that look at likeness have in common: an encoder, and vectors that are what they should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.records import Scores
from tithe.selectors.base import Selector
from tithe.selectors.budget import Indices

COVERED = "covered by what is kept"
UNIT = 1e-2  # how far a length may be from 1


@dataclass(frozen=True, kw_only=True)
class Diverse(Selector):
    """A selector that looks at how alike prompts are: the cosine of `Scores.vectors`.

    Examples without a score have no say: they are neither kept nor covered.

    Args:
        encoder: what makes the vectors; `self` is the scoring model, by its own hidden states.
    """

    encoder: str = "self"

    def vectors(self, scores: Scores, rows: Indices) -> npt.NDArray[np.float32]:
        """The vectors of those examples: (rows, dim), each of length 1, or zeros where nothing is known of a text.

        Raises:
            SettingsError: if the scores have no vectors.
            DataError: if one of them is of another length, or has a number that is not finite.
        """
        if scores.vectors is None:
            message = f"`{self.name}` looks at likeness, and there are no vectors beside the scores"
            raise SettingsError(message, hint="from Python: `Scores(..., vectors=...)`, a row of length 1 per example")
        vectors = scores.vectors[rows]
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.sqrt(np.einsum("rd,rd->r", vectors, vectors, dtype=np.float64))
        odd = np.flatnonzero(~((np.abs(lengths - 1) < UNIT) | (lengths == 0)))
        if len(odd):
            length = float(lengths[odd[0]])
            what = f"is of length {length:.4g}, not 1" if np.isfinite(length) else "has a number that is not finite"
            raise DataError(f"the vector of example `{scores.ids[rows[odd[0]]]}` by encoder `{self.encoder}` {what}")
        return vectors
