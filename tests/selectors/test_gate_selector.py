"""The gate keeps the most sound, and says of the others what they look like."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tithe.errors import SettingsError
from tithe.records import Scores, without_number
from tithe.selectors.budget import Budget
from tithe.selectors.gate_selector import Gate


def scores_of(values: list[float], kinds: list[str], chances: list[float], **columns: list[Any]) -> Scores:
    problems = {i: "no response token left" for i, value in enumerate(values) if np.isnan(value)}
    more = {name: np.array(cells, dtype=object) for name, cells in columns.items()}
    looks = {"sound_looks_like": np.array(kinds, dtype=object), "sound_looks_like_probability": np.array(chances)}
    return Scores([f"e{i}" for i in range(len(values))], np.array(values), problems, looks | more)


def test_the_share_is_kept_and_the_rest_told_what_it_looks_like() -> None:
    scores = scores_of(
        [2.0, -3.0, 0.5, np.nan, -0.1, 1.0], ["echo", "cut", "cut", "", "echo", "cut"], [0.1, 0.974, 0.5, 0, 0.6, 0.2]
    )
    got = Gate().select(scores, Budget.parse("50%"))
    assert got.kept == ["e0", "e2", "e5"]
    assert got.dropped == {
        "e1": "looks like cut (0.97)",
        "e3": "no response token left",
        "e4": "looks like echo (0.60)",
    }
    assert set(got.kept) | set(got.dropped) == set(scores.ids)


def test_half_of_what_has_a_score_where_shares_are_of_these() -> None:
    scores = scores_of([3.0, np.nan, 2.0, 1.0, np.nan, 0.0], ["cut"] * 6, [0.5] * 6)
    assert Gate().select(scores, Budget.parse("50%", of="kept")).kept == ["e0", "e2"]


def test_of_equals_the_first_stay() -> None:
    got = Gate().select(scores_of([1.0] * 9, ["cut"] * 9, [0.5] * 9), Budget.parse(4))
    assert got.kept == ["e0", "e1", "e2", "e3"]


def test_reasons_are_counted_without_their_numbers() -> None:
    kinds = ["cut", "echo", "cut", "cut", "echo"]
    scores = scores_of([5.0, 4.0, 3.0, 2.0, 1.0], kinds, [0.91, 0.92, 0.93, 0.94, 0.95])
    got = Gate().select(scores, Budget.parse(1))
    assert len(set(got.dropped.values())) == 4
    assert got.reasons() == {"looks like echo": 2, "looks like cut": 2}


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("gate: looks like other-answer (1.00)", "gate: looks like other-answer"),
        ("below the budget", "below the budget"),
        ("ifd > 1", "ifd > 1"),
        ("near duplicate of line 7 (similar)", "near duplicate of line 7 (similar)"),
        ("(0.97) of them", "(0.97) of them"),
    ],
)
def test_only_a_number_at_the_end_does_not_count(reason: str, short: str) -> None:
    assert without_number(reason) == short


def test_within_a_column_every_value_keeps_its_share() -> None:
    """All short records look worse than all long ones, and a half of each stays."""
    kinds = ["short"] * 8 + ["long"] * 12
    scores = scores_of([float(i) for i in range(20)], ["cut"] * 20, [0.9] * 20, length=kinds)
    plain = Gate().select(scores, Budget.parse("50%"))
    within = Gate("length").select(scores, Budget.parse("50%"))
    assert Counter(kinds[int(id_[1:])] for id_ in plain.kept) == {"long": 10}
    assert within.kept == [f"e{i}" for i in [*range(4, 8), *range(14, 20)]]
    assert within.reasons() == {"looks like cut": 10}


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        Gate("nowhere").select(scores_of([1.0, 2.0], ["cut"] * 2, [0.5] * 2), Budget.parse("50%"))
