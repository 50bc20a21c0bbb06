"""Selectors that rank the examples and keep the front of the ranking."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from tithe.errors import SettingsError
from tithe.records import Scores, Selection
from tithe.selectors.base import NO_REASONS, Selector, scored
from tithe.selectors.budget import Budget, Indices, groups, share_out

Ties: TypeAlias = Literal["first", "last"]


@dataclass(frozen=True)
class Ranked(Selector):
    """A selector that is only an order: the budget is spent from its front."""

    below: ClassVar[str] = "below the budget"
    outside: ClassVar[str] = "left out"

    @abstractmethod
    def order(self, scores: Scores) -> Indices:
        """Return the indices of the examples that may be kept, the one to keep first at the front."""

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Keep the front of the order."""
        order = self.order(scores)
        others = np.setdiff1d(scored(scores), order)
        because = dict.fromkeys(others.tolist(), self.outside) if len(others) else NO_REASONS
        return self.settle(scores, budget.take(scores, order), self.below, because)


@dataclass(frozen=True)
class Top(Ranked):
    """Keeps the highest scores.

    Args:
        ties: which of equal scores to keep first, in input order; the IFD authors' code takes the last.
    """

    name: ClassVar[str] = "top"
    ties: Ties = "first"

    def __post_init__(self) -> None:
        if self.ties not in ("first", "last"):
            raise SettingsError(f"`ties` is `first` or `last`, not `{self.ties}`")

    def order(self, scores: Scores) -> Indices:
        """Return the highest first."""
        valid = scored(scores)
        if self.ties == "last":
            # Reversing a stable ascending order puts the last of equal scores first.
            return valid[np.argsort(scores.values[valid], kind="stable")[::-1]]
        return valid[np.argsort(-scores.values[valid], kind="stable")]


@dataclass(frozen=True)
class Bottom(Ranked):
    """Keeps the lowest scores: the control that shows whether a score means anything."""

    name: ClassVar[str] = "bottom"
    below: ClassVar[str] = "above the budget"

    def order(self, scores: Scores) -> Indices:
        """Return the lowest first, ties in input order."""
        valid = scored(scores)
        return valid[np.argsort(scores.values[valid], kind="stable")]


@dataclass(frozen=True)
class Band(Ranked):
    """Keeps the highest scores between two quantiles: neither trivial nor extreme.

    Args:
        low: quantile of the valid scores below which nothing is kept, 0 to 1; a score equal to it is inside.
        high: quantile above which nothing is kept, `low` to 1; a score equal to it is inside.
    """

    name: ClassVar[str] = "band"
    outside: ClassVar[str] = "outside the band"
    low: float = 0.25
    high: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            hint = "quantiles, for example `low=0.25, high=0.75`"
            raise SettingsError(f"a band needs 0 <= low <= high <= 1, not {self.low} and {self.high}", hint=hint)

    def order(self, scores: Scores) -> Indices:
        """Return those inside the band, highest first."""
        best = Top().order(scores)
        if not len(best):
            return best
        values = scores.values[best]
        # A score is at or above an interpolated quantile iff it is at or above the next real score. So nothing is
        # interpolated (infinite scores do no harm), and positions are exact: 0.1 of 31 scores is the fourth, not fifth.
        steps = len(best) - 1
        low = values[steps - ceil(Fraction(str(self.low)) * steps)]
        high = values[steps - floor(Fraction(str(self.high)) * steps)]
        inside = (values >= low) & (values <= high)
        return best[np.flatnonzero(inside)]


@dataclass(frozen=True)
class RandomOrder(Ranked):
    """Keeps examples at random: the baseline that every score has to beat.

    The draw of an example depends on the seed and its id only, so reordering the input or adding to it does not
    reshuffle the rest.

    Args:
        seed: any integer.
    """

    name: ClassVar[str] = "random"
    below: ClassVar[str] = "not drawn"
    seed: int = 0

    def order(self, scores: Scores) -> Indices:
        """Return the examples in order of a hash of seed and id."""
        prefix = f"{self.seed}\0"  # the NUL keeps seed 1 with id `2x` apart from seed 12 with id `x`
        valid = scored(scores)
        lots = [_lot(prefix + scores.ids[i]) for i in valid.tolist()]
        return valid[sorted(range(len(valid)), key=lots.__getitem__)]


@dataclass(frozen=True)
class Stratified(Selector):
    """Keeps the best of every stratum, so that the selection has the input's mix.

    Quotas add up to the budget exactly (largest remainders); what a stratum cannot fill goes to the others. Examples
    without a value are a stratum of their own. A token budget has no quotas: it is spent over the strata in turn, and
    ends with the first example that it cannot pay for.

    Args:
        by: the column whose values are the strata.
        inner: the order within a stratum: `top`, `bottom` or `random`.
        share: `proportional` to the strata's sizes (in the input, or in what is left of it, as for the budget), or
            `equal`.
        seed: of `random`.
    """

    name: ClassVar[str] = "stratified"
    by: str
    inner: Literal["top", "bottom", "random"] = "top"
    share: Literal["proportional", "equal"] = "proportional"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inner not in ("top", "bottom", "random"):
            raise SettingsError(f"`inner` is `top`, `bottom` or `random`, not `{self.inner}`")
        if self.share not in ("proportional", "equal"):
            raise SettingsError(f"`share` is `proportional` or `equal`, not `{self.share}`")

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Keep the front of every stratum's order."""
        strata = groups(scores, self.by)
        queues: dict[str, list[int]] = {label: [] for label in strata}
        home = {index: label for label, members in strata.items() for index in members}
        order = {"top": Top(), "bottom": Bottom(), "random": RandomOrder(self.seed)}[self.inner].order(scores)
        for index in order.tolist():
            queues[home[index]].append(index)
        weights = {label: len((strata if budget.of == "input" else queues)[label]) for label in strata}
        kept = share_out(scores, budget, queues, None if self.share == "equal" else weights)
        return self.settle(scores, kept, "below the budget" if budget.unit == "tokens" else "below its stratum's quota")


def _lot(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
