"""A subset is a data set with the same examples and ids, read anew each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.data.containers import Row
from tithe.data.dataset import Dataset, Subset, open_dataset
from tithe.data.export import write_records
from tithe.records import BadRow, Example


def alpaca(i: int) -> dict[str, str]:
    return {"instruction": f"say {i % 4}", "output": f"it is {i % 4}"}  # every fourth is the same again


def dialogue(i: int) -> dict[str, object]:
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": f"{role} {i} {turn}"} for turn, role in enumerate(roles)]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write twelve records, each three of them equal, and two bad rows."""
    lines = [json.dumps(alpaca(i)) for i in range(12)]
    lines[3:3] = ['{"instruction": "cut', '{"instruction": "a", "output": " "}']
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "data.jsonl"


def named(data: Dataset) -> list[tuple[str, int, int]]:
    return [(item.id, item.row, item.turn) for item in data if isinstance(item, Example)]


def test_examples_keep_id_row_and_turn(data: Path) -> None:
    whole = open_dataset(data)
    chosen = [one for one in named(whole) if one[1] in (0, 8, 13)]
    subset = Subset.of(whole, {0: {1}, 8: {1}, 13: {1}})
    assert named(subset) == chosen and len(chosen) == 3
    assert "-" not in chosen[0][0] and chosen[1][0].endswith("-1") and chosen[2][0].endswith("-2")
    assert list(subset) == list(subset) == [item for item in whole if item.row in (0, 8, 13)]


def test_bad_rows_are_no_part(data: Path) -> None:
    whole = open_dataset(data)
    assert sum(isinstance(item, BadRow) for item in whole) == 2
    subset = Subset.of(whole, {row: {1} for row in range(14)})
    assert len(list(subset)) == 12 and all(isinstance(item, Example) for item in subset)


def test_rows_and_records_are_those_of_the_chosen(data: Path, tmp_path: Path) -> None:
    subset = Subset.of(open_dataset(data), {2: {1}, 5: {1}})
    assert [number for number, _ in subset.rows()] == [2, 5]
    assert [record for _, record in subset.records()] == [alpaca(2), alpaca(3)]
    write_records(subset, range(14), tmp_path / "out.jsonl")
    lines = data.read_bytes().splitlines()
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == [lines[2], lines[5]]


def test_a_subset_of_a_subset(data: Path) -> None:
    whole = open_dataset(data)
    once = Subset.of(whole, {row: {1} for row in (0, 5, 6, 8, 9)})
    twice = Subset.of(once, {row: {1} for row in (0, 8)})
    assert named(twice) == [one for one in named(whole) if one[1] in (0, 8)]
    assert [number for number, _ in twice.rows()] == [0, 8]


def test_turns_are_chosen_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(dialogue(i)) + "\n" for i in range(4)))
    whole = open_dataset(path, turns="all")
    assert [one[1:] for one in named(whole)] == [(i, turn) for i in range(4) for turn in (1, 3)]
    subset = Subset.of(whole, {1: {3}, 2: {1, 3}})
    assert [one[1:] for one in named(subset)] == [(1, 3), (2, 1), (2, 3)]


def test_the_digest_and_the_limit_are_the_wholes(data: Path) -> None:
    whole = open_dataset(data, limit=6)
    subset = Subset.of(whole, {0: {1}, 8: {1}})
    assert subset.digest() == whole.digest() and subset.source == whole.source
    assert [one[1] for one in named(subset)] == [0]  # row 8 is beyond the limit
    before = subset.digest()
    data.write_text(data.read_text() + "\n")
    assert subset.digest() != before


@dataclass
class Counting:
    """A source of rows that records how far it was read."""

    read: list[int] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        for i in range(1000):
            self.read.append(i)
            yield Row(f"row {i}", {"instruction": f"say {i}", "output": "it"})

    def digest(self) -> str:
        return "same"


def test_it_streams() -> None:
    origin = Counting()
    whole = Dataset("made", "alpaca", "last", False, None, ("instruction", "output"), origin)
    subset = Subset.of(whole, {row: {1} for row in (3, 7, 900)})
    assert [item.row for item in islice(subset, 2)] == [3, 7]
    assert len(origin.read) == 8
    assert repr(subset) == f"Subset({whole!r}, 3 examples)"
    assert replace(subset, places={}).places == {} and list(replace(subset, places={})) == []


@settings(max_examples=50, deadline=None)
@given(rows=st.sets(st.integers(0, 60)), equal=st.integers(1, 5))
def test_any_choice_is_the_wholes_filtered(rows: set[int], equal: int) -> None:
    class Few(Counting):
        def rows(self) -> Iterator[Row]:
            for i in range(40):
                record = {"instruction": f"say {i % equal}", "output": "it" if i % 7 else ""}
                yield Row(f"row {i}", record)

    whole = Dataset("made", "alpaca", "last", False, None, (), Few())
    subset = Subset.of(whole, {row: {1} for row in rows})
    assert list(subset) == [item for item in whole if item.row in rows and isinstance(item, Example)]
