"""Any bytes give a `TitheError`, or each record becomes an example or a bad row and the counts add up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tithe.data.dataset import open_dataset
from tithe.data.export import write_records
from tithe.data.formats import Shape, read_examples
from tithe.data.ids import Occurrences
from tithe.errors import OutputError, TitheError
from tithe.records import BadRow, Example

fuzz = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

RECORDS = [
    {"instruction": "q\n1", "input": "", "output": 'a "1", é', "k": 1.5},
    {"instruction": "q2", "input": "x\ty", "output": "a2\r\n🧑‍🚀", "k": None},
] * 3
CALL = {"function": {"name": "f", "arguments": "{}"}}
DIALOGUE = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "q"}]},
        {"role": "assistant", "content": "a", "reasoning": "r", "tool_calls": [CALL]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "b", "weight": 1},
    ],
    "tools": "[]",
}  # fmt: skip


def good_files() -> dict[str, bytes]:
    jsonl = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
    cells = io.StringIO(newline="")
    writer = csv.DictWriter(cells, list(RECORDS[0]))
    writer.writeheader()
    writer.writerows(RECORDS)
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), table)
    return {
        "jsonl": jsonl,
        "json": json.dumps(RECORDS, indent=1).encode(),
        "object": json.dumps({"v": 1, "data": RECORDS}).encode(),
        "dialogue": (json.dumps(DIALOGUE) + "\n").encode() * 3,
        "csv": cells.getvalue().encode(),
        "parquet": table.getvalue(),
        "gz": gzip.compress(jsonl),
        "zst": zstandard.ZstdCompressor().compress(jsonl),
    }


GOOD = good_files()


def check(content: bytes, suffix: str, turns: Any = "last") -> None:
    """Read the bytes as a data set and write it again; only a `TitheError` may be raised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(content)
        try:
            dataset = open_dataset(path, turns=turns)
            items = list(dataset)
            rows = [number for number, _ in dataset.rows()]
        except TitheError as error:
            assert "\n" not in str(error)
            return
        assert all(isinstance(item, (Example, BadRow)) for item in items)
        assert sorted({item.row for item in items}) == rows
        if turns == "last":
            assert [item.row for item in items] == rows
        ids = [item.id for item in items if isinstance(item, Example)]
        assert len(set(ids)) == len(ids)
        for target in ("out.jsonl", "out.csv", "out.parquet"):
            try:
                written = write_records(dataset, set(rows), Path(folder) / target, reasons={row: "r" for row in rows})
            except OutputError:
                assert target != "out.jsonl"
            else:
                assert target != "out.jsonl" or written.records == len(rows)


SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ""])
STARTS = st.sampled_from([b"", b"[", b"{", b"[{", b'{"data": [', b"PAR1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf", b"instruction,output\n", b"\xff\xfe"])  # fmt: skip  # noqa: E501


@fuzz
@given(STARTS, st.binary(max_size=400), SUFFIXES)
def test_random_bytes(start: bytes, rest: bytes, suffix: str) -> None:
    check(start + rest, suffix)


@fuzz
@given(st.text(alphabet='{}[]",:\\ \n\r\t;a1-.eE+instruionp', max_size=200), SUFFIXES)
def test_random_text_of_structural_characters(text: str, suffix: str) -> None:
    check(text.encode(), suffix)


@pytest.mark.parametrize("kind", sorted(GOOD))
@fuzz
@given(data=st.data())
def test_cut_and_damaged_files(kind: str, data: st.DataObject) -> None:
    content = bytearray(GOOD[kind][: data.draw(st.integers(0, len(GOOD[kind])))])
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(content), data.draw(SUFFIXES), data.draw(st.sampled_from(["last", "all"])))


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)
NAMES = (
    st.sampled_from(
        ["instruction", "input", "output", "response", "prompt", "completion", "messages", "conversations", "system"]
    )
    | st.sampled_from(
        ["tools", "history", "role", "from", "content", "value", "type", "text", "reasoning", "tool_calls", "function"]
    )
    | st.sampled_from(["name", "arguments", "weight", "user", "assistant", "gpt", "human", "function_call", "tool"])
)
CELLS = st.sampled_from(["[{", "[]", "{}", '[{"role": 1}]'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | NAMES | CELLS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXT, inner, max_size=4),
    max_leaves=25,
)  # fmt: skip
TURN = st.fixed_dictionaries(
    {"role": NAMES, "content": VALUES}, optional={"tool_calls": VALUES, "weight": VALUES, "reasoning": VALUES}
)
RECORD = VALUES | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}, optional={"tools": VALUES})


@fuzz
@given(
    RECORD, st.sampled_from(["alpaca", "prompt-completion", "messages", "sharegpt"]), st.sampled_from(["last", "all"])
)
def test_random_values_as_records(record: object, shape: Shape, turns: Any) -> None:
    items = list(read_examples(record, shape, turns, 0, "f:1", Occurrences()))
    assert items and (turns == "all" or len(items) == 1)
    for item in items:
        assert isinstance(item, (Example, BadRow))
        if isinstance(item, Example):
            assert item.response.role == "assistant" and item.turn == len(item.prompt)
            assert item.response.tool_calls or item.response.content.strip()
            item.response.content.encode()


@pytest.mark.slow
@fuzz
@given(st.lists(RECORD, min_size=1, max_size=6), st.sampled_from(["jsonl", "json"]))
def test_random_values_in_files(records: list[object], kind: str) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    check((lines if kind == "jsonl" else json.dumps(records, indent=1)).encode(), f".{kind}", "all")
