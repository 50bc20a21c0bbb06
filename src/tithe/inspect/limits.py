"""Rates of a check, the limits that they must keep, and how they compare with an earlier check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tithe.errors import DataError
from tithe.foreign import read_json

# name of a rate -> (what is counted, of what)
RATES: Mapping[str, tuple[str, str]] = {
    "bad": ("bad rows", "records"),
    "empty": ("empty responses", "records"),
    "duplicates": ("exact duplicates", "examples"),
    "near_duplicates": ("near-duplicates", "examples"),
    "truncated": ("truncated", "examples"),
    "contaminated": ("contaminated", "examples"),
    "noted": ("records with a note", "records"),
    "other_language": ("in another language", "examples"),
}
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{0,12})?|\.\d{1,12})\s*%", re.ASCII)
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_NUMBER = re.compile(r"0?\.\d{1,12}", re.ASCII)


@dataclass(frozen=True)
class Rate:
    """How many records or examples have a fault.

    Args:
        count: those that have it.
        of: all that were looked at.
    """

    count: int
    of: int

    @property
    def share(self) -> float:
        """Their share, 0 to 1."""
        return self.count / self.of if self.of else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "rate": round(self.share, 6)}


@dataclass(frozen=True)
class Limit:
    """The most of a rate that passes.

    Args:
        text: as given.
        count: most examples or records; None for a share.
        share: most share, 0 to 1; None for a count.
    """

    GRAMMAR: ClassVar[str] = "a count such as `0` or `12`, or a share such as `1%` or `0.01`"
    text: str
    count: int | None = None
    share: float | None = None

    @classmethod
    def fits(cls, value: Any) -> bool:
        """Tell whether a value is a limit."""
        return value is None or parse_count(value) is not None or parse_share(value) is not None

    @classmethod
    def parse(cls, value: str | int | float) -> Self:
        """Read a limit that `fits`."""
        count = parse_count(value)
        if count is not None:
            return cls(str(value), count=count)
        share = parse_share(value)
        assert share is not None, value
        return cls(str(value), share=share)

    def exceeded(self, name: str, rate: Rate) -> str | None:
        """Return a sentence if the rate is above the limit."""
        if rate.count <= self.count if self.count is not None else rate.share <= (self.share or 0.0):
            return None
        what, of = RATES[name]
        return f"{what}: {rate.count:,} of {rate.of:,} {of} ({percent(rate.share)}), and at most {self} may be"

    def __str__(self) -> str:
        return f"{self.count:,}" if self.count is not None else percent(self.share or 0.0)


def parse_count(value: Any) -> int | None:
    """Return a count of 0 or more; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    return int(value) if isinstance(value, str) and _COUNT.fullmatch(value.strip()) else None


def parse_share(value: Any) -> float | None:
    """Return a share between 0 and 1: of `1%`, `0.01` or a fraction; None if it is none."""
    if isinstance(value, str):
        text = value.strip()
        match = _SHARE.fullmatch(text)
        found = float(match[1]) / 100 if match else float(text) if _NUMBER.fullmatch(text) else None
    else:
        found = value if isinstance(value, float) else None
    return found if found is not None and 0 <= found <= 1 else None


def percent(share: float) -> str:
    """Return a share as text: `3.2 %`, and never `0 %` of something."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".") if share < 0.1 else f"{100 * share:.3g}"
    return f"{text} %" if text != "0" or share == 0 else "under 0.01 %"


@dataclass(frozen=True)
class RateChange:
    """A rate beside that of an earlier check.

    Args:
        name: of the rate.
        before: the earlier share; None if that check did not look for it.
        now: the share of this check; None if it did not look for it.
        why_not: why the two cannot be compared; None if they can.
    """

    name: str
    before: float | None
    now: float | None
    why_not: str | None = None

    def grown(self, tolerance: float) -> str | None:
        """Return a sentence if the rate grew by more than the tolerance."""
        if self.before is None or self.now is None or self.why_not or self.now - self.before <= tolerance + 1e-9:
            return None
        what, of = RATES[self.name]
        return (
            f"{what}: grew from {percent(self.before)} to {percent(self.now)} of the {of}, "
            f"by more than {percent(tolerance).removesuffix(' %')} points"
        )

    def as_dict(self) -> dict[str, Any]:
        found = {"before": self.before, "now": self.now}
        return found if self.why_not is None else found | {"not_compared": self.why_not}


def read_baseline(path: Path) -> dict[str, Any]:
    """Read the record of an earlier check.

    Raises:
        DataError: it is missing, or something else.
    """
    hint = "`tithe check DATA -o check.json` writes one"
    found: dict[str, Any] = read_json(path, DataError, hint)
    rates = found.get("rates")
    if "check" not in found or not isinstance(rates, dict) or not isinstance(found.get("dataset"), dict):
        raise DataError(f"`{path}` is no record of `tithe check`", hint=hint)
    for name, rate in rates.items():
        value = rate.get("rate") if isinstance(rate, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"`{path}` is damaged: the rate `{name}` is not between 0 and 1", hint=hint)
    if not isinstance(found.get("measured_by"), dict):
        raise DataError(f"`{path}` is damaged: it does not say how it was measured", hint=hint)
    return found


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[RateChange]:
    """Compare the rates of two records of a check."""
    found = []
    for name in RATES:
        old, new = (record["rates"].get(name) for record in (before, now))
        how = [record["measured_by"].get(name) for record in (before, now)]
        why = None
        if old is not None and new is None:
            why = f"not looked for now: {now['skipped'].get(name, 'unknown')}"
        elif old is None and new is not None:
            why = "not looked for in the baseline"
        elif old is not None and how[0] != how[1]:
            why = f"measured in another way: {describe(how[0])} before, {describe(how[1])} now"
        if old is not None or new is not None:
            was, is_now = (None if one is None else float(one["rate"]) for one in (old, new))
            found.append(RateChange(name, was, is_now, why))
    return found


def describe(how: Any) -> str:
    """Return how a rate was measured, in words."""
    return ", ".join(f"{key} {value}" for key, value in how.items()) if isinstance(how, Mapping) else str(how)
