"""Records from Parquet and the hub are read like the same records in JSON lines."""

# ruff: noqa: E501 - each case of a table in one line

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_dataset import lines, put
from tithe.data.dataset import open_dataset
from tithe.data.hub import HubData
from tithe.errors import DataError
from tithe.records import Example


def call(name: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    return {"messages": turns, **more}


def schema(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": list(properties)}}


RECORDS = [
    call("weather", {"city": "Oslo"}, tools=[schema("weather", city={"type": "string"})]),
    call("read", {"path": "a", "lines": 3}, tools=[schema("read", path={"type": "string", "enum": ["a"]})]),
    call("many", {"rows": [{"a": 1}, {"b": 2}], "deep": {"x": {"y": "z"}}}, tools=[schema("many"), schema("read", path={"type": "string"})]),
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "reasoning_content": "hm"}]},
]  # fmt: skip
ARGUMENTS = "null fields in `arguments` count as absent: Parquet and Arrow do not tell the two apart"
TOOLS = "null fields in `tools` count as absent: Parquet and Arrow do not tell the two apart"


def read(path: Path) -> list[Example]:
    items = list(open_dataset(path))
    assert all(isinstance(item, Example) for item in items), items
    return [item for item in items if isinstance(item, Example)]


def same(a: Example, b: Example) -> bool:
    return (a.id, a.prompt, a.response, a.tools) == (b.id, b.prompt, b.response, b.tools)


def test_tool_calls_and_schemas_of_parquet_are_those_of_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    plain, arrow = read(put(tmp_path / "a.jsonl", lines(RECORDS))), read(tmp_path / "a.parquet")
    assert len(plain) == len(arrow) == 4 and all(map(same, plain, arrow))
    assert "null" not in json.dumps([example.response.as_dict() for example in arrow])
    assert [example.notes for example in arrow] == [(ARGUMENTS, TOOLS)] * 3 + [()]


def test_a_null_of_json_lines_stays(tmp_path: Path) -> None:
    (got,) = read(put(tmp_path / "a.jsonl", lines([call("f", {"x": None, "y": [None, 1]})])))
    assert got.response.tool_calls[0]["function"]["arguments"] == {"x": None, "y": [None, 1]}
    assert got.notes == ()


def test_a_null_in_a_list_of_parquet_stays(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([call("f", {"y": [None, 1]})]), tmp_path / "a.parquet")
    (got,) = read(tmp_path / "a.parquet")
    assert got.response.tool_calls[0]["function"]["arguments"] == {"y": [None, 1]}


def test_arguments_as_a_map_and_as_pairs(tmp_path: Path) -> None:
    for number, kind in enumerate([
        pa.map_(pa.string(), pa.string()),
        pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])),
    ]):  # fmt: skip
        pairs: Any = [("a", "1"), ("b", None)]
        if number:
            pairs = [{"key": key, "value": value} for key, value in pairs]
        turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(
            pa.struct([("name", pa.string()), ("arguments", kind)])))])  # fmt: skip
        record = [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": pairs}]},
        ]
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"messages": pa.array([record], pa.list_(turn))}), path)
        (got,) = read(path)
        assert got.response.tool_calls[0]["function"]["arguments"] == {"a": "1", "b": None}


def test_the_hub_leaves_nulls_of_structs_out_and_keeps_those_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.Table.from_pylist(RECORDS).to_pylist()

    class Stream(list[Any]):
        features: Any = None

    stream = Stream(rows)
    fake = types.SimpleNamespace(load_dataset=lambda *_, **__: stream)
    monkeypatch.setattr("tithe.data.hub._import_datasets", lambda: fake)
    got = list(HubData("o/n", "train", "c").rows())
    assert [row.record["messages"] for row in got] == [record["messages"] if i == 3 else [
        {"role": "user", "content": "ask"},
        {key: value for key, value in record["messages"][1].items() if value is not None},
    ] for i, record in enumerate(RECORDS)]  # fmt: skip
    assert [row.notes for row in got] == [(ARGUMENTS, TOOLS)] * 3 + [()]
    stream.features = {"messages": "List({'role': Value('string'), 'tool_calls': Json()})"}
    assert next(iter(HubData("o/n", "train", "c").rows())).record["messages"] == rows[0]["messages"]


def test_a_name_that_stands_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    text = pa.array(["a"])
    pq.write_table(
        pa.Table.from_arrays([text, text, text], names=["instruction", "output", "output"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="has two columns named `output`"):
        open_dataset(tmp_path / "a.parquet")
    turns = pa.StructArray.from_arrays([text, text, text], names=["role", "content", "content"])
    nested = pa.ListArray.from_arrays(pa.array([0, 1]), turns)
    pq.write_table(pa.table({"messages": nested}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has two fields named `content` in `messages`"):
        open_dataset(tmp_path / "b.parquet")
