"""The score table holds the same as plain lists, in little memory per value."""

import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tithe.planner import Window
from tithe.records import BadRow, Example, Message, Problem
from tithe.run.folder import write_table
from tithe.run.table import ScoreTable
from tithe.runners.local import ScoredWindow


def window(start, count):
    """Make scored examples, every 50th a bad row and every 7th without a score."""
    items = [
        BadRow(i, f"line {i}", "no response")
        if i % 50 == 0
        else Example(f"{i:016x}", i, 1, (Message("user", "a"),), Message("assistant", "b"))
        for i in range(start, start + count)
    ]
    examples = [item for item in items if isinstance(item, Example)]
    problem = Problem("empty response")
    plan = Window(items, [problem] * len(examples), [[{}, {}]] * len(examples), [], [], [], [], 0)
    scores = [{"a": problem if one.row % 7 == 0 else one.row / 3, "b": 0.25} for one in examples]
    return ScoredWindow(plan, {}, scores, [{"a_more": 1.0 + one.row} for one in examples])


def test_the_table_is_what_lists_would_be():
    table = ScoreTable(["a", "b"], more=["a_more"])
    for start in range(0, 300, 100):
        table.add(window(start, 100))
    rows = range(300)
    bad = [row % 50 == 0 for row in rows]
    failed = [row % 7 == 0 and not bad[row] for row in rows]
    made = table.arrow()
    assert made["id"].to_pylist() == [None if bad[row] else f"{row:016x}" for row in rows]
    assert made["row"].to_pylist() == list(rows)
    assert made["a"].to_pylist() == [None if bad[row] or failed[row] else row / 3 for row in rows]
    assert made["a_more"].to_pylist() == [None if bad[row] else 1.0 + row for row in rows]
    said = ["no response" if bad[row] else "a: empty response" if failed[row] else None for row in rows]
    assert made["problem"].to_pylist() == said
    assert made["nll_shown"].null_count == 300
    scores = table.scores("a")
    examples = [row for row in rows if not bad[row]]
    assert list(scores.ids) == [f"{row:016x}" for row in examples]
    expected = [math.nan if failed[row] else row / 3 for row in examples]
    np.testing.assert_array_equal(scores.values, np.array(expected))
    assert dict(scores.problems) == {i: "empty response" for i, row in enumerate(examples) if failed[row]}
    assert table.without_score("a") == sum(failed) and table.without_score("b") == 0


@pytest.mark.parametrize("count", [0, 1, 64, 300])
def test_parts_of_the_table_are_the_table(count, monkeypatch):
    monkeypatch.setattr("tithe.run.table.PART", 64)
    table = window_table(count)
    parts = list(table.parts())
    assert [len(part) for part in parts] == ([64] * (count // 64) + [count % 64] * (count % 64 > 0) or [0])
    assert all(part.schema.equals(table.arrow().schema, check_metadata=True) for part in parts)
    assert pa.concat_tables(parts).equals(table.arrow()) and len(table) == count


def test_writing_the_table_does_not_hold_it_a_second_time(tmp_path, monkeypatch):
    """At most two of 16 parts are in memory at a time, as Python objects and in pyarrow."""
    monkeypatch.setattr("tithe.run.table.PART", 512)
    table = ScoreTable(["a", "b"])
    for start in range(0, 8192, 1024):
        table.add(window(start, 1024))
    write_table(tmp_path / "warm.parquet", window_table(10).parts())
    whole = sum(column.nbytes for column in table.arrow().columns)
    tracemalloc.start()
    write_table(tmp_path / "scores.parquet", table.parts())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 3, (peak, whole)
    assert pq.read_metadata(tmp_path / "scores.parquet").num_row_groups == 16
    assert pq.read_table(tmp_path / "scores.parquet").equals(table.arrow())


def window_table(count):
    table = ScoreTable(["a", "b"])
    table.add(window(0, count))
    return table


@pytest.mark.slow
def test_a_row_of_the_table_takes_few_bytes():
    """A row is an id of 16 characters and its offset, row, turn, three scores, three NLLs, four counts, a few bits."""
    table = ScoreTable(["a", "b"], more=["a_more"])
    table.add(window(0, 4096))
    tracemalloc.start()
    before, count = tracemalloc.get_traced_memory()[0], 0
    for start in range(5000, 25_000, 1000):
        part = window(start, 1000)
        table.add(part)
        count += 1000
        del part
    grown = (tracemalloc.get_traced_memory()[0] - before) / count + table.arrow().nbytes / len(table)
    tracemalloc.stop()
    problems = 1 / 7 * (2 * 110 + 40)  # of one row in seven: entries in two dictionaries and a text
    assert grown < (16 + 4 + 8 + 4 + 6 * 8 + 4 * 4 + 4 + 2) * 1.1 + problems, grown
