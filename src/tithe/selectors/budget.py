"""Parse how much may be kept (rows, a share, or response tokens), and spend it, also over parts of the data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import SettingsError, did_you_mean
from tithe.records import FloatArray, Scores, Selection

Indices: TypeAlias = npt.NDArray[np.intp]
Unit: TypeAlias = Literal["rows", "share", "tokens"]
Base: TypeAlias = Literal["input", "kept"]

TOKENS_COLUMN = "response_tokens"
FORMS = "a budget is rows (`500`), a share (`5%`, `0.05`) or tokens (`200k-tokens`)"

# The number of digits is bounded, so that no text can make a number that takes minutes to compute.
_PERCENT = re.compile(r"([+-]?(?:\d{1,15}\.?\d{0,15}|\.\d{1,15}))\s*%", re.ASCII)
_TOKENS = re.compile(r"([+-]?(?:\d{1,15}\.?\d{0,15}|\.\d{1,15}))\s*([km]?)[\s-]*tokens?", re.ASCII)
_ROWS = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_SHARE = re.compile(r"[+-]?(?:\d{1,15}\.?\d{0,20}|\.\d{1,20})(?:e[+-]?\d{1,2})?", re.ASCII)
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True)
class Budget:
    """How much may be kept, as an exact number; made by `Budget.parse`.

    Args:
        amount: rows, tokens, or the share as a fraction of 1.
        unit: what `amount` counts.
        of: what a share refers to: the whole input, or what filters and problems left of it.
        text: the budget as given, for messages and the run record.
    """

    amount: Fraction
    unit: Unit
    of: Base = "input"
    text: str = ""

    @classmethod
    def parse(cls, given: str | int | float, *, of: Base = "input") -> Budget:
        """Parse `500`, `0.05`, `"5%"` or `"1.5m-tokens"`; an int is rows, a float a share, also as text.

        Raises:
            SettingsError: for anything else, zero, a negative amount, and more than 100 %.
        """
        text = str(given).strip().lower()  # shortest decimal of a float: 0.29 is 29/100 and not 0.28999999...
        if of not in ("input", "kept"):
            raise SettingsError(f"a budget is of `input` or `kept`, not of `{of}`")
        if not isinstance(given, bool):
            if match := _PERCENT.fullmatch(text):
                return cls(_share(Fraction(match[1]) / 100, text), "share", of, text)
            if match := _TOKENS.fullmatch(text):
                return cls(_whole(Fraction(match[1]) * _SCALE[match[2]], text, "tokens"), "tokens", of, text)
            if _ROWS.fullmatch(text):
                return cls(_whole(Fraction(text), text, "rows"), "rows", of, text)
            if _SHARE.fullmatch(text):
                return cls(_share(Fraction(text), text), "share", of, text)
        raise SettingsError(f"budget `{given!s:.40}` cannot be read", hint=FORMS)

    def __str__(self) -> str:
        return self.text

    def rows(self, total: int, left: int) -> int | None:
        """Return the rows asked for, which may be more than there are; None for a token budget.

        Args:
            total: number of examples in the input.
            left: how many of them have a score and so can be kept at all.

        Raises:
            SettingsError: if the share is less than one row.
        """
        if self.unit == "tokens":
            return None
        if self.unit == "rows":
            return int(self.amount)
        base = total if self.of == "input" else left
        rows = int(base * self.amount)  # exact, and rounded down
        if rows == 0 and left > 0:
            least = -(-1 // self.amount)
            hint = f"this share needs at least {least} examples; `1` keeps one row"
            raise SettingsError(f"a budget of `{self.text}` of {base} examples comes to 0 rows", hint=hint)
        return rows

    def take(self, scores: Scores, order: Indices) -> Indices:
        """Return the first of `order` that the budget pays for.

        A token budget stops at the first example that does not fit. Going on to shorter ones further down would favour
        short responses over good ones.

        Args:
            scores: what is chosen from; a token budget reads its column `response_tokens`.
            order: indices into `scores`, the one to keep first at the front.

        Raises:
            SettingsError: if the budget pays for nothing, or there are no token counts to pay with.
        """
        if self.unit == "tokens":
            return order[: self._paid(scores, order)]
        return order[: self.rows(len(scores), left(scores))]

    def spend(self, scores: Scores, picks: Iterable[int]) -> Indices:
        """Take from an order that is computed step by step, no further than needed.

        Args:
            scores: what is chosen from.
            picks: indices into `scores`, all different, the one to keep first at the front.

        Raises:
            SettingsError: as in `take`.
        """
        rows = self.rows(len(scores), left(scores))
        front = self._until_spent(scores, picks) if rows is None else islice(picks, rows)
        return self.take(scores, np.fromiter(front, dtype=np.intp))

    def note(self, scores: Scores, selection: Selection) -> str | None:
        """Return a sentence if less was kept than asked for, because there was no more to keep."""
        kept = len(selection.kept)
        if self.unit == "tokens":
            full = kept == left(scores)
            return f"all {kept} examples that can be kept fit in `{self.text}`" if full and kept else None
        asked = self.rows(len(scores), left(scores))
        if asked is None or kept >= asked:
            return None
        return f"`{self.text}` asks for {asked} rows, but only {kept} of {len(scores)} examples can be kept"

    def _paid(self, scores: Scores, order: Indices) -> int:
        """Count the examples from the front of `order` that the tokens pay for."""
        counts = self._counts(scores)[order]
        odd = np.flatnonzero(~(counts >= 0))
        if len(odd):
            raise SettingsError(f"`{TOKENS_COLUMN}` has no count for example `{scores.ids[order[odd[0]]]}`")
        # Token counts are whole numbers far below 2^53, so the float64 sums are exact.
        paid = int(np.searchsorted(np.cumsum(counts), float(self.amount), side="right"))
        if paid == 0 and len(order):
            message = f"budget `{self.text}` is less than the {int(counts[0])} response tokens of the first example"
            raise SettingsError(message, hint="give a larger budget")
        return paid

    def _until_spent(self, scores: Scores, picks: Iterable[int]) -> Iterator[int]:
        """Yield the picks up to and including the first that the tokens do not pay for."""
        counts, spent = self._counts(scores), 0.0
        for pick in picks:
            yield pick
            spent += float(counts[pick])
            if not spent <= float(self.amount):  # `not <=`, as a missing count is NaN; `take` then reports it
                return

    def _counts(self, scores: Scores) -> FloatArray:
        if TOKENS_COLUMN not in scores.columns:
            hint = "give the budget in rows or as a share"
            raise SettingsError(f"budget `{self.text}` needs the column `{TOKENS_COLUMN}`", hint=hint)
        return scores.columns[TOKENS_COLUMN].astype(np.float64)


def left(scores: Scores) -> int:
    """Count the examples that have a score."""
    return len(scores) - len(scores.problems)


def _share(share: Fraction, text: str) -> Fraction:
    """Check a share: above 0, at most 1."""
    if share > 1:
        hint = "a share is at most `100%`" if "%" in text else _rows_or_percent(share)
        raise SettingsError(f"budget `{text}` is more than everything", hint=hint)
    if share <= 0:
        _nothing(text)
    return share


def _whole(amount: Fraction, text: str, unit: str) -> Fraction:
    """Check a count: whole, and at least 1."""
    if amount <= 0:
        _nothing(text)
    if amount.denominator != 1:
        raise SettingsError(f"budget `{text}` is not a whole number of {unit}", hint=FORMS)
    return amount


def _rows_or_percent(share: Fraction) -> str:
    rows = f"`{int(share)}` is rows"
    return f"{rows}, `{float(share):g}%` is a share" if share <= 100 else f"{rows}, a share is at most `1.0`"


def _nothing(text: str) -> NoReturn:
    hint = f"`0.5%` is a share, `5` is rows; {FORMS}"
    raise SettingsError(f"budget `{text}` keeps nothing", hint=hint)


MISSING = "None"


def groups(scores: Scores, by: str) -> dict[str, list[int]]:
    """Split examples by a column: label -> indices in input order; labels sorted, whatever value comes first.

    Raises:
        SettingsError: if there is no such column.
    """
    if by not in scores.columns:
        raise SettingsError(f"there is no column `{by}` to stratify by", hint=did_you_mean(by, scores.columns))
    found: dict[str, list[int]] = {}
    for index, value in enumerate(scores.columns[by].tolist()):
        found.setdefault(_label(value), []).append(index)
    return dict(sorted(found.items()))


def quotas(rows: int, weights: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return rows per label in proportion to the weights: together `min(rows, all sizes)`, none above its size."""
    out = dict.fromkeys(weights, 0)
    rest = min(rows, sum(sizes.values()))  # rows not yet given to a label
    open_ = [label for label in weights if sizes[label] > 0]
    while rest > 0:
        share = _largest_remainder(rest, {label: weights[label] for label in open_})
        full = [label for label in open_ if share[label] >= sizes[label]]
        if not full:
            return out | share
        for label in full:  # full: what they cannot take is shared out among the others
            out[label] = sizes[label]
            rest -= sizes[label]
            open_.remove(label)
    return out


def share_out(
    scores: Scores, budget: Budget, queues: Mapping[str, Sequence[int]], weights: Mapping[str, int] | None
) -> list[int]:
    """Keep the front of every queue: by quotas, or in turn for a token budget, which has no quotas.

    Args:
        scores: what is chosen from.
        budget: how much may be kept.
        queues: label -> indices into `scores`, the one to keep first at the front.
        weights: label -> what quotas are proportional to; None for equal quotas.
    """
    rows = budget.rows(len(scores), sum(map(len, queues.values())))
    if rows is None:
        turns = interleave(queues, equal=weights is None)
        return [int(index) for index in budget.take(scores, np.array(turns, dtype=np.intp))]
    sizes = {label: len(queue) for label, queue in queues.items()}
    quota = quotas(rows, dict.fromkeys(queues, 1) if weights is None else weights, sizes)
    return [index for label, queue in queues.items() for index in queue[: quota[label]]]


def interleave(queues: Mapping[str, Sequence[int]], *, equal: bool = False) -> list[int]:
    """Merge queues into one order whose every prefix has each queue in proportion to its length, or equally."""
    # By the middle of each entry's slot, with the queue stretched to 0..1, every prefix keeps the proportions.
    place = [
        (rank if equal else (2 * rank + 1) / (2 * len(queue)), label, index)
        for label, queue in queues.items()
        for rank, index in enumerate(queue)
    ]
    return [index for _, _, index in sorted(place)]


def _largest_remainder(rows: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Return whole numbers in proportion to the weights that add up to `rows`; exact, as it uses integers only."""
    total = sum(weights.values())
    out = {label: rows * weight // total for label, weight in weights.items()}
    # The rest goes to the largest remainders; ties to the larger weight, then to the label, never to the input order.
    by_rest = sorted(weights, key=lambda label: (-(rows * weights[label] % total), -weights[label], label))
    for label in by_rest[: rows - sum(out.values())]:
        out[label] += 1
    return out


def _label(value: Any) -> str:
    """Name any cell, hashable or not. The text `None` becomes `'None'`, so it differs from a missing value."""
    missing = value is None or value != value  # only NaN differs from itself
    return MISSING if missing else repr(value)
