"""Selecting: what filters and duplicates do to one another."""

from __future__ import annotations

import numpy as np

from tithe.records import Scores
from tithe.run.select import duplicates


def scores(ids: list[str], without: dict[int, str]) -> Scores:
    values = np.array([np.nan if i in without else float(i) for i in range(len(ids))])
    return Scores(ids, values, without)


def test_first_of_equals_stays() -> None:
    assert duplicates(scores(["a", "b", "a-1", "a-2"], {}), {}) == {2: "exact duplicate", 3: "exact duplicate"}


def test_filter_that_takes_the_first_leaves_the_next() -> None:
    assert duplicates(scores(["a", "b", "a-1", "a-2"], {}), {0: "ifd > 1"}) == {3: "exact duplicate"}


def test_copy_without_a_score_does_not_stand_for_the_others() -> None:
    assert duplicates(scores(["a", "a-1", "a-2"], {0: "out of memory"}), {}) == {2: "exact duplicate"}
