"""Compact columns give what plain lists would, in memory that does not grow with every value."""

import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.planner import Window
from tithe.records import BadRow, Example, Message, Problem
from tithe.run.folder import write_table
from tithe.run.table import Mask, Numbers, Reasons, Table, Texts
from tithe.runners.local import Scored

FLOATS, TEXTS = st.none() | st.floats(), st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


def same(a, b):
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def check(column, values, kind):
    """The column as a sequence, by place, and as Arrow: `None` is null and NaN is NaN."""
    assert len(column) == len(values)
    assert all(map(same, column, values)) and all(same(column[i], value) for i, value in enumerate(values))
    made, plain = column.arrow(), pa.array(values, kind)
    made.validate(full=True)
    assert made.type == plain.type and made.null_count == plain.null_count
    assert all(map(same, made.to_pylist(), plain.to_pylist()))
    for start in range(0, len(values), 8):
        for stop in range(start, len(values) + 1):
            part = column.arrow(range(start, stop))
            part.validate(full=True)
            assert part.type == plain.type and all(map(same, part.to_pylist(), plain[start:stop].to_pylist()))
    places = list(range(len(values)))[::-2]
    assert all(map(same, column.take(places), [values[i] for i in places]))


@settings(deadline=None)
@given(st.lists(FLOATS, max_size=40))
def test_floats(values):
    column = Numbers("float64", values)
    check(column, values, pa.float64())
    expected = [math.nan if value is None else value for value in values]
    np.testing.assert_array_equal(column.floats(), np.array(expected, dtype=np.float64))


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=40))
def test_integers(values):
    check(Numbers("int32", values), values, pa.int32())
    check(Numbers("int64", values), values, pa.int64())


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=40))
def test_texts(values):
    check(Texts(values), values, pa.string())
    check(Reasons(values), values, pa.string())


def test_nothing_but_none_takes_a_bit_each():
    column = Numbers("float64", [None] * 80_000)
    assert len(column.numbers) == 0 and len(column.mask.bits) == 10_000
    column.append(2.5)
    assert column[0] is None and column[-1] == 2.5 and column.arrow().null_count == 80_000


def test_places_that_there_are_not():
    column = Texts(["a", None])
    assert column[-2] == "a" and column[0:2] == ["a", None]
    for place in (2, -3):
        with pytest.raises(IndexError):
            column[place]


def test_mask_bits_are_in_arrows_order():
    mask = Mask()
    for i in range(11):
        mask.append(i in (0, 3, 8))
    assert list(mask.bits) == [0b00001001, 0b00000001] and mask.there == 3
    assert np.flatnonzero(mask.array()).tolist() == [0, 3, 8]


def window(start, count):
    """Scored examples, every 50th a bad row and every 7th without a score."""
    items = [
        BadRow(i, f"line {i}", "no response")
        if i % 50 == 0
        else Example(f"{i:016x}", i, 1, (Message("user", "a"),), Message("assistant", "b"))
        for i in range(start, start + count)
    ]
    examples = [item for item in items if isinstance(item, Example)]
    problem = Problem("empty response")
    plan = Window(items, [problem] * len(examples), [[{}, {}]] * len(examples), [], [], [], 0)
    scores = [{"a": problem if one.row % 7 == 0 else one.row / 3, "b": 0.25} for one in examples]
    return Scored(plan, {}, scores, [{"a_more": 1.0 + one.row} for one in examples])


def test_the_table_is_what_lists_would_be():
    table = Table(["a", "b"], more=["a_more"])
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
    """Of arrays and bytes there are at most two parts at a time, of 16, and pyarrow's own are of no more."""
    monkeypatch.setattr("tithe.run.table.PART", 512)
    table = Table(["a", "b"])
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
    table = Table(["a", "b"])
    table.add(window(0, count))
    return table


@pytest.mark.slow
def test_a_row_of_the_table_takes_few_bytes():
    """Ids of 16 characters with their ends, row and turn, three numbers, a few bits; arrays grow by an eighth."""
    table = Table(["a", "b"], more=["a_more"])
    table.add(window(0, 4096))
    tracemalloc.start()
    before, count = tracemalloc.get_traced_memory()[0], 0
    for start in range(5000, 25_000, 1000):
        part = window(start, 1000)
        table.add(part)
        count += 1000
        del part
    grown = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    problems = 1 / 7 * 3 * 110  # of one row in seven: an entry in three dictionaries, which a real run has of few
    assert grown < (16 + 4 + 8 + 4 + 3 * 8 + 2) * 1.25 + problems, grown
