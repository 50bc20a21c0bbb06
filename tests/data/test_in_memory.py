"""Records that Python holds read like the same records in a file."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.data.dataset import open_dataset
from tithe.data.in_memory import hold
from tithe.errors import DataError, SettingsError
from tithe.records import BadRow, Example

datasets = pytest.importorskip("datasets")
pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

CHAT = [
    {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}]}], "n": 1},
    {"messages": [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]}], "n": None},
]  # fmt: skip

ONE = datasets.Dataset.from_dict({"a": [1]})
KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": lambda rows: rows,
    "tuple": tuple,
    "datasets": datasets.Dataset.from_list,
    "pandas": pandas.DataFrame,
    "pandas from Parquet": lambda rows: pa.Table.from_pylist(rows).to_pandas(),
    "polars": polars.DataFrame,
    "arrow": pa.Table.from_pylist,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_read_like_the_file(kind: str, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "input": None if i % 2 else "x", "output": f"a{i} é🧑‍🚀"} for i in range(1200)]
    of_file = list(open_dataset(write_jsonl(tmp_path / "data.jsonl", rows)))
    held = tithe.load(KINDS[kind](rows))
    assert [item.id for item in held] == [item.id for item in of_file]
    assert [record for _, record in held.records()] == rows
    assert held.digest() == tithe.load(rows).digest()  # so that a run may go on with another kind


@pytest.mark.parametrize("kind", KINDS)
def test_nulls_of_a_struct_are_absent(kind: str) -> None:
    dataset = tithe.load(KINDS[kind](CHAT))
    arguments = [item.response.tool_calls[0]["function"]["arguments"] for item in dataset if isinstance(item, Example)]
    assert arguments == [{"city": "Rome"}, {"a": 1, "b": 2}]


def test_nan_and_na_of_pandas_are_nulls_and_numbers_are_pythons() -> None:
    frame = pandas.DataFrame(
        {"prompt": ["a", "b"], "completion": ["x", "y"], "score": [1.5, np.nan], "n": pandas.array([7, None], "Int64")}
    )
    found = [record for _, record in tithe.load(frame).records()]
    assert found == [
        {"prompt": "a", "completion": "x", "score": 1.5, "n": 7},
        {"prompt": "b", "completion": "y", "score": None, "n": None},
    ]
    assert [type(record["n"]) for record in found] == [int, type(None)]


def test_a_missing_or_mixed_value_costs_one_record() -> None:
    frame = pandas.DataFrame({"prompt": ["a", "b", "c"], "completion": ["x", np.nan, 5]})
    kept, *bad = list(tithe.load(frame))
    assert isinstance(kept, Example) and all(isinstance(item, BadRow) for item in bad) and len(bad) == 2
    assert [item.where for item in bad] == [f"<DataFrame of 3 rows>: record {i}" for i in (2, 3)]


def test_a_dataset_with_chosen_rows_a_format_and_pictures() -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(5)]
    data = datasets.Dataset.from_list(rows).select([3, 1]).with_format("numpy")
    data = data.add_column("picture", [{"bytes": b"no picture", "path": None}] * 2)
    data = data.cast_column("picture", datasets.Image())  # decoding it would fail
    found = [record for _, record in tithe.load(data).records()]
    assert [record["completion"] for record in found] == ["a3", "a1"]
    with pytest.raises(SettingsError, match="has a transform"):
        tithe.load(data.with_transform(lambda batch: batch))


@pytest.mark.parametrize(
    ("data", "said", "hint"),
    [
        (None, "a data set is a path, a hub id or records, not a NoneType", "records are a list of dicts"),
        (5, "a data set is a path, a hub id or records, not an int", "records are a list of dicts"),
        (iter([{}]), "a data set is a path, a hub id or records, not a list_iterator", "give `list(...)` of it"),
        (
            {"prompt": ["a"]},
            "a data set is a path, a hub id or records, not a dict",
            "`datasets.Dataset.from_dict(...)`",
        ),
        (polars.LazyFrame({"prompt": ["a"]}), "a `LazyFrame` is not computed yet", "`data.collect()`"),
        (datasets.DatasetDict(train=ONE), "a `DatasetDict` has several splits: `train`", "`data['train']`"),
        (ONE.to_iterable_dataset(), "an `IterableDataset` is not held but streamed", "give its hub id"),
    ],
)
def test_other_objects_are_refused_with_a_way_out(data: Any, said: str, hint: str) -> None:
    for call in (tithe.load, lambda given: tithe.score(given, scorer="length", model="pocket", progress=False)):
        with pytest.raises(SettingsError) as caught:
            call(data)
        assert str(caught.value).startswith(said) and hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "`<list of 0 records>` holds no records"),
        ([1, "a"], "holds no readable record"),
        (pandas.DataFrame({"text": ["a"]}), "has records of no known shape: there is `text`"),
        (pandas.DataFrame([["a", "b"]], columns=["prompt", "prompt"]), "the DataFrame has two columns named `prompt`"),
        (pa.table([["a"], ["b"]], names=["prompt", "prompt"]), "the table has two columns named `prompt`"),
    ],
)
def test_data_without_records_is_one_sentence(data: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        tithe.load(data)
    assert said in str(caught.value)


def test_a_name_lasts_as_long_as_the_data_is_held() -> None:
    rows, others = [{"prompt": "a", "completion": "b"}], [{"prompt": "c", "completion": "d"}]
    first, second = hold(rows), hold(others)
    assert first.name == "<list of 1 record>" and second.name == "<list of 1 record, 2>"
    assert hold(rows) is first
    assert [record for _, record in open_dataset(second.name).records()] == others
    name = second.name
    del second
    gc.collect()
    with pytest.raises(DataError, match="was held by Python"):
        open_dataset(name)


def test_data_that_changes_after_it_was_scored_is_noticed(model_dir: Path) -> None:
    rows = records(20)
    chosen = tithe.select(rows, scorer="length", model=str(model_dir), keep=5, progress=False)
    assert len(chosen.to_list()) == 5
    rows.reverse()
    for use in (chosen.to_list, chosen.to_dataset, lambda: list(chosen.records("dropped"))):
        with pytest.raises(DataError, match="has changed since"):
            use()
