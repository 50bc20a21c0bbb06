"""Define a selector: settings, and one method that turns scores into a selection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.records import Scores, Selection
from tithe.selectors.budget import Budget, Indices

NO_REASONS: Mapping[int, str] = {}


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses which examples are kept. A subclass is a frozen dataclass of its settings.

    A selection accounts for every example, in input order; see `settle`. Reasons are short, and equal for all examples
    dropped for the same cause, so that they can be counted: leave scores, ids and ranks out of them.

    `reads` names the computed columns that it needs in `Scores.columns`, such as `prompt`. A selector with a field
    `encoder: str` gets `Scores.vectors`, made by that encoder; see `Diverse`.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Keep what the budget pays for, and drop the rest with reasons.

        Raises:
            SettingsError: if a setting, the budget and the scores do not fit together.
        """

    def settle(
        self, scores: Scores, kept: Iterable[int], why: str, because: Mapping[int, str] = NO_REASONS
    ) -> Selection:
        """Return the selection that keeps `kept` and gives every other example a reason.

        Args:
            scores: what was chosen from.
            kept: indices into `scores`, in any order.
            why: the reason of those not kept.
            because: index -> a more specific reason. An example's problem takes precedence over both.
        """
        chosen = {int(index) for index in kept}
        dropped = {
            scores.ids[i]: scores.problems.get(i) or because.get(i, why) for i in range(len(scores)) if i not in chosen
        }
        return Selection([scores.ids[i] for i in sorted(chosen)], dropped, by=str(self))

    def __str__(self) -> str:
        settings = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self))
        return f"{self.name}({settings})" if settings else self.name


def scored(scores: Scores) -> Indices:
    """Return the indices of the examples that have a score, in input order."""
    return np.flatnonzero(~np.isnan(scores.values))


COVERED = "covered by what is kept"
UNIT = 1e-2  # how far a length may be from 1


@dataclass(frozen=True, kw_only=True)
class Diverse(Selector):
    """A selector that uses the similarity of prompts: the cosine of `Scores.vectors`.

    Examples without a score play no part: they are neither kept nor covered.

    Args:
        encoder: what embeds prompts; `self` uses the scoring model's hidden states.
    """

    encoder: str = "self"

    def vectors(self, scores: Scores, rows: Indices) -> npt.NDArray[np.float32]:
        """Return the vectors of those examples: (rows, dim), each of length 1, or zeros for unknown text.

        Raises:
            SettingsError: if the scores have no vectors.
            DataError: if a vector has another length, or a number that is not finite.
        """
        if scores.vectors is None:
            message = f"`{self.name}` compares prompts, but the scores have no vectors"
            raise SettingsError(message, hint="from Python: `Scores(..., vectors=...)`, a row of length 1 per example")
        vectors = scores.vectors[rows]
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.sqrt(np.einsum("rd,rd->r", vectors, vectors, dtype=np.float64))
        odd = np.flatnonzero(~((np.abs(lengths - 1) < UNIT) | (lengths == 0)))  # `~`, so that NaN is odd, too
        if len(odd):
            length = float(lengths[odd[0]])
            what = f"has length {length:.4g}, not 1" if np.isfinite(length) else "has a number that is not finite"
            raise DataError(f"the vector of example `{scores.ids[rows[odd[0]]]}` by encoder `{self.encoder}` {what}")
        return vectors
