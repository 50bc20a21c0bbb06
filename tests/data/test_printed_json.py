"""Pretty-printed records, single or consecutive, and objects with a repeated field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_dataset import RECORDS, bad, lines, put, responses
from tithe.data.dataset import open_dataset
from tithe.data.export import write_records
from tithe.errors import DataError

CHAT: dict[str, Any] = {
    "tools": [{"name": "f"}],
    "meta": [{"a": 1}],
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
}
SHAREGPT = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TWICE = "the field `output` stands twice in one object"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
@pytest.mark.parametrize("record", [RECORDS[0], CHAT, SHAREGPT], ids=["alpaca", "messages", "sharegpt"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("between", ["\n", "\n\n", " ", "\r\n"])
def test_printed_records(tmp_path: Path, name: str, record: dict[str, Any], times: int, between: str) -> None:
    text = between.join([json.dumps(record, indent=2)] * times)
    dataset = open_dataset(put(tmp_path / name, text.encode()))
    assert responses(dataset) == [record.get("output", "a")] * times


@pytest.mark.parametrize("wrapper", ["data", "messages", "conversations"])
def test_a_printed_object_that_holds_a_list_of_records(tmp_path: Path, wrapper: str) -> None:
    text = json.dumps({"version": 2, wrapper: [CHAT] * 3}, indent=2)
    dataset = open_dataset(put(tmp_path / "a.json", text.encode()))
    assert responses(dataset) == ["a"] * 3


def test_the_place_of_a_printed_record_is_its_first_line(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(record, indent=1) for record in (RECORDS[0], {"instruction": "q", "output": ""}))
    (row,) = bad(open_dataset(put(tmp_path / "a.json", text.encode())))
    assert row.where == f"{tmp_path / 'a.json'}:6" and row.reason == "the response is empty"


@pytest.mark.parametrize("cut", [",", "]", "x", "{"])
def test_damage_after_a_printed_record_is_one_sentence(tmp_path: Path, cut: str) -> None:
    text = json.dumps(RECORDS[0], indent=2) + cut
    with pytest.raises(DataError, match="invalid JSON"):
        list(open_dataset(put(tmp_path / "a.json", text.encode())))


def test_a_field_that_stands_twice_is_a_bad_row_of_json_lines(tmp_path: Path) -> None:
    text = b'{"instruction": "q", "output": "a", "output": "b"}\n' + lines(RECORDS[:1])
    assert [row.reason for row in bad(open_dataset(put(tmp_path / "a.jsonl", text)))] == [TWICE]


def test_a_field_that_stands_twice_in_a_turn(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]'
    text = "".join(f'{{"messages": {said}}}\n' for said in (turns, turns.replace(', "content": "b"', "")))
    (row,) = bad(open_dataset(put(tmp_path / "a.jsonl", text.encode())))
    assert row.reason == "the field `content` stands twice in one object"
    cells = f'messages\n"{turns.replace(chr(34), chr(34) * 2)}"\n'
    (cell,) = bad(open_dataset(put(tmp_path / "a.csv", cells.encode()), format="messages"))
    assert cell.reason == "`messages`: the field `content` stands twice in one object"


def test_a_field_that_stands_twice_in_a_list_is_one_bad_row_and_its_text_is_kept(tmp_path: Path) -> None:
    faulty = '{"instruction": "q", "output": "é", "output": "b"}'
    text = f"[{json.dumps(RECORDS[0])}, {faulty},\n {json.dumps(RECORDS[1])}]"
    dataset = open_dataset(put(tmp_path / "a.json", text.encode()))
    assert [row.reason for row in bad(dataset)] == [TWICE]
    write_records(dataset, {1}, tmp_path / "dropped.jsonl", reasons={1: "why"})
    assert json.loads((tmp_path / "dropped.jsonl").read_text()) == {"tithe_raw": faulty, "tithe_reason": "why"}
