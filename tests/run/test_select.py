"""Selecting: how filters and duplicates work together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tithe.records import Scores
from tithe.run.choose import add_vectors, find_duplicates
from tithe.selectors.rank import Top


def scores(ids: list[str], without: dict[int, str]) -> Scores:
    values = np.array([np.nan if i in without else float(i) for i in range(len(ids))])
    return Scores(ids, values, without)


def test_first_of_equals_stays() -> None:
    assert find_duplicates(scores(["a", "b", "a-1", "a-2"], {}), {}) == {2: "exact duplicate", 3: "exact duplicate"}


def test_filter_that_takes_the_first_leaves_the_next() -> None:
    assert find_duplicates(scores(["a", "b", "a-1", "a-2"], {}), {0: "ifd > 1"}) == {3: "exact duplicate"}


def test_copy_without_a_score_does_not_stand_for_the_others() -> None:
    assert find_duplicates(scores(["a", "a-1", "a-2"], {0: "out of memory"}), {}) == {2: "exact duplicate"}


@dataclass(frozen=True)
class Near(Top):
    """A selector that keeps the highest scores, and reads vectors."""

    encoder: str = "tfidf"


@dataclass(frozen=True)
class Stub:
    asked: list[tuple[list[str], str]]

    def vectors(self, ids: list[str], encoder: str) -> np.ndarray[Any, Any]:
        self.asked.append((ids, encoder))
        return np.eye(len(ids), 5, dtype=np.float32) + 1


def test_vectors_are_made_of_what_may_be_kept() -> None:
    stub = Stub([])
    before = scores(["a", "b", "c", "d"], {1: "ifd > 1"})
    got = add_vectors(before, Near(), stub)  # type: ignore[arg-type]
    assert stub.asked == [(["a", "c", "d"], "tfidf")]
    assert got.vectors is not None and got.vectors.dtype == np.float32
    assert got.vectors[[0, 2, 3]].tolist() == (np.eye(3, 5) + 1).tolist() and not got.vectors[1].any()
    assert add_vectors(before, Top(), stub).vectors is None  # type: ignore[arg-type]
    nothing = add_vectors(scores(["a"], {0: "gone"}), Near(), stub)  # type: ignore[arg-type]
    assert nothing.vectors is not None and nothing.vectors.shape == (1, 1)
