"""Rank by several scorers at once: `rank(ifd)+rank(length)`, the mean of the ranks that an example has by each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from tithe.errors import SettingsError, brief
from tithe.records import FloatArray

FORM = "for example `rank(ifd)+rank(length)`, or `2*rank(ifd)+rank(miwv)`"
_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*\*\s*)?rank\s*\(", re.ASCII)
_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


def is_mean_rank(text: str) -> bool:
    """Tell whether a text is meant as a mean of ranks, well written or not."""
    return _TERM.match(text) is not None


@dataclass(frozen=True)
class RankTerm:
    """One scorer's part in a mean of ranks.

    Args:
        spec: the scorer, with its settings where it has some.
        weight: how much its ranks count.
        low: whether low scores are the good ones; a minus sign says so.
    """

    spec: str
    weight: float = 1.0
    low: bool = False

    @property
    def name(self) -> str:
        """The scorer without its settings, which is its column."""
        return self.spec.partition("(")[0].strip()

    def __str__(self) -> str:
        return f"{'' if self.weight == 1 else f'{self.weight:.12g}*'}rank({self.name})"


@dataclass(frozen=True)
class MeanRank:
    """A ranking by the weighted mean of the ranks of several scorers.

    A rank is the share of examples with a lower score, with half of those that have the same one: 0.5 is the middle,
    and equal scores get the average of their ranks. So each scorer counts by order alone, whatever its unit.

    Args:
        terms: the scorers and their weights, each scorer once.
    """

    terms: tuple[RankTerm, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `rank(a)+rank(b)`, with weights `2*rank(a)`; `-rank(b)` counts its ranks from the other end.

        Raises:
            SettingsError: it cannot be read, a weight is 0, or a scorer occurs twice.
        """
        terms, at = list[RankTerm](), 0
        while text[at:].strip():
            found = _TERM.match(text, at)
            if found is None or (terms and not found[1]):
                odd = brief(text[at:].strip(), 30)
                raise SettingsError(f"`{brief(text)}` is no mean of ranks: `{odd}` is not expected there", hint=FORM)
            end = closing(text, found.end())
            spec = text[found.end() : end].strip()
            term = RankTerm(spec, float(found[2] or 1), found[1] == "-")
            if not term.name:
                raise SettingsError(f"`{brief(text)}` has a rank of nothing", hint=FORM)
            if term.weight == 0:
                raise SettingsError(f"`{brief(text)}` gives `{term.name}` the weight 0", hint="leave it out")
            if term.name in [one.name for one in terms]:
                raise SettingsError(f"`{brief(text)}` has `{term.name}` twice", hint=f"`2*rank({term.name})`")
            terms.append(term)
            at = end + 1
        if not terms:
            raise SettingsError("the mean of ranks is empty", hint=FORM)
        return cls(tuple(terms))

    @property
    def names(self) -> list[str]:
        """Columns of the scores that are ranked."""
        return [term.name for term in self.terms]

    def renamed(self, columns: Mapping[str, str]) -> MeanRank:
        """Return the ranking with other columns in place of some."""
        return MeanRank(tuple(replace(one, spec=columns.get(one.name, one.name)) for one in self.terms))

    def __str__(self) -> str:
        """Return it in one spelling, which is also the name of its column."""
        signs = ["-" if one.low else "+" for one in self.terms]
        text = "".join(f"{sign}{one}" for sign, one in zip(signs, self.terms, strict=True))
        return text.removeprefix("+")

    def values(self, scores: Mapping[str, FloatArray], among: Mapping[str, FloatArray] | None = None) -> FloatArray:
        """Return the weighted mean of ranks, above 0 and below 1; high is good, NaN where a scorer has none.

        Args:
            scores: column -> (examples,) scores.
            among: column -> (others,) scores to rank them among, without NaN; by default the examples themselves that
                have all scores.
        """
        columns = {name: scores[name] for name in self.names}
        if among is None:
            there = ~np.isnan(np.stack(list(columns.values()))).any(axis=0)  # (examples,)
            among = {name: column[there] for name, column in columns.items()}
        n, out = len(among[self.names[0]]), np.zeros(len(columns[self.names[0]]))
        if not n:
            return out * np.nan
        for one in self.terms:  # whole numbers are added up, so that equal means are equal to the last bit
            counts = twice_below(columns[one.name], among[one.name])
            out += one.weight * (2 * n - counts if one.low else counts)
        return out / (2 * n * sum(one.weight for one in self.terms))


def twice_below(values: FloatArray, among: FloatArray) -> FloatArray:
    """Return twice the number of `among` below each value, plus the number that is equal; NaN stays NaN."""
    ordered = np.sort(among)
    both = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return np.where(np.isnan(values), np.nan, both.astype(np.float64))


def closing(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one before `start`.

    Raises:
        SettingsError: there is none.
    """
    depth, quote = 1, ""
    for place in range(start, len(text)):
        char = text[place]
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
            if depth == 0:
                return place
    raise SettingsError(f"`{brief(text)}`: brackets or quotes do not match", hint=FORM)
