"""Large matrices of cases: `make test` runs representatives, `make test-all` every cell (the mark `thorough`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest


def thinned(values: Collection[Any], always: Collection[Any]) -> list[Any]:
    """Mark all values as thorough but those that always run."""
    assert set(always) <= set(values)
    return [one if one in always else pytest.param(one, marks=pytest.mark.thorough) for one in values]


def pairs(rows: Sequence[Any], columns: Sequence[Any], name: Callable[[Any], str] = str) -> list[Any]:
    """Make all pairs, of which each row runs with one column in turn, so that none of either is ever left out."""
    found = []
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            marks = () if i % len(columns) == j else (pytest.mark.thorough,)
            found.append(pytest.param(row, column, id=f"{name(row)}-{column}", marks=marks))
    return found
