"""Drop examples before anything is ranked: by comparing a column with a value, and duplicates."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.errors import SettingsError, did_you_mean
from tithe.records import Scores

DUPLICATE = "exact duplicate"
OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_FILTER = re.compile(r"([^<>=!]+)(>=|<=|==|!=|>|<|=)(.*)", re.DOTALL)  # surrounding spaces are stripped afterwards
_NUMBER = re.compile(r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """Drops the examples for which the comparison holds; made by `Filter.parse`.

    A missing value (None, NaN) is unequal to everything, and neither more nor less. If the filter has a number, text
    that reads as a number is compared as one, since CSV files hold only text.

    Args:
        column: a scorer, a count such as `response_tokens`, or a column of the input.
        op: one of `OPERATORS`.
        value: a number or a text.
        text: the filter as given, which is also the reason of what it drops.
    """

    column: str
    op: str
    value: float | int | str
    text: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Parse `ifd > 1`, `response_tokens <= 8` or `source == "web"`.

        Raises:
            SettingsError: if it is not a column, a comparison and a number or quoted text.
        """
        text = text.strip()
        match = _FILTER.fullmatch(text)
        if match is None:
            hint = 'for example `ifd > 1` or `source == "web"`'
            raise SettingsError(f"filter `{text}` is not `<column> <comparison> <value>`", hint=hint)
        column, op, value = (part.strip() for part in match.groups())
        if op == "=":
            raise SettingsError(f"filter `{text}` has `=`", hint=f"`{column} == {value}`")
        return cls(column, op, _value(value, text), text)

    def check(self, known: Iterable[str]) -> None:
        """Refuse an unknown column; this works before anything is scored."""
        names = list(known)
        if self.column not in names:
            message = f"filter `{self.text}`: there is no column `{self.column}`"
            raise SettingsError(message, hint=did_you_mean(self.column, names))

    def hits(self, value: Any) -> bool:
        """Tell whether a cell is dropped.

        Raises:
            TypeError: if the cell's type cannot be compared with the filter's value.
        """
        if value is None or value != value:  # only NaN differs from itself
            return self.op == "!="
        if isinstance(value, str) and not isinstance(self.value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, str if isinstance(self.value, str) else Number):
            return bool(OPERATORS[self.op](value, self.value))
        raise TypeError(f"`{value!s:.40}` is {type(value).__name__}")

    def __str__(self) -> str:
        return self.text


def apply_filters(
    filters: Sequence[Filter], columns: Mapping[str, npt.NDArray[Any]], ids: Sequence[str]
) -> dict[int, str]:
    """Return index -> reason, in input order; the first filter that hits gives the reason.

    Args:
        filters: in order of precedence.
        columns: name -> one value per example.
        ids: of the examples, to name one in an error.

    Raises:
        SettingsError: for an unknown column, or a value that cannot be compared.
    """
    reasons: dict[int, str] = {}
    for one in filters:
        one.check(columns)
        for index, value in enumerate(columns[one.column].tolist()):
            try:
                hit = one.hits(value)
            except TypeError as error:
                kind = "text" if isinstance(one.value, str) else "a number"
                message = f"filter `{one.text}` compares `{one.column}` with {kind}, but in example `{ids[index]}` "
                raise SettingsError(f"{message}{error}") from error
            if hit:
                reasons.setdefault(index, one.text)
    return dict(sorted(reasons.items()))


def drop_duplicates(keys: Sequence[bytes | str]) -> dict[int, str]:
    """Return index -> reason for every key that occurred before; the first occurrence stays."""
    seen: set[bytes | str] = set()
    reasons: dict[int, str] = {}
    for index, key in enumerate(keys):
        if key in seen:
            reasons[index] = DUPLICATE
        seen.add(key)
    return reasons


def without(scores: Scores, reasons: Mapping[int, str]) -> Scores:
    """Return the scores without those examples' values, with the reason as their problem, so that none can be kept.

    An example that had a problem before keeps it.
    """
    values = scores.values.copy()
    values[list(reasons)] = np.nan
    return replace(scores, values=values, problems={**reasons, **scores.problems})


def _value(value: str, text: str) -> float | int | str:
    if match := _QUOTED.fullmatch(value):
        return match[1] if match[1] is not None else match[2]
    if not _NUMBER.fullmatch(value):
        hint = f'text is quoted: `"{value}"`' if value else None
        raise SettingsError(f"filter `{text}`: `{value}` is not a number", hint=hint)
    return int(value) if value.lstrip("+-").isdigit() else float(value)
