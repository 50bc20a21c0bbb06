"""Chosen records in files: nothing is lost or changed, and a file appears complete or not at all."""

from __future__ import annotations

import datetime
import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tithe.data.dataset import Dataset, open_dataset
from tithe.data.export import check_writable, write_records
from tithe.data.lines import detect_packing, reading, unpacked
from tithe.data.outfile import atomic
from tithe.errors import DataError, OutputError
from tithe.records import Example

RECORDS: list[dict[str, Any]] = [
    {"instruction": f"q{i}", "input": "", "output": f"é {i}\r\n", "n": 1.5 * i, "tags": ["x", None], "none": None}
    for i in range(6)
]
DIALOGUE = {
    "conversations": [
        {"from": "human", "value": "1"},
        {"from": "gpt", "value": "2"},
        {"from": "human", "value": "3"},
        {"from": "gpt", "value": "4"},
    ],
    "system": "s",
    "kind": "k",
}


def load(path: Path, records: list[Any] = RECORDS) -> Dataset:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return open_dataset(path)


def back(path: Path) -> list[Any]:
    return [record for _, record in open_dataset(path).records()]


CONTAINERS = ["jsonl", "json", "parquet"]


@pytest.mark.parametrize("source", CONTAINERS)
@pytest.mark.parametrize("target", [*CONTAINERS, "jsonl.gz", "jsonl.zst", "json.gz", "none"])
def test_values_columns_and_order_survive(tmp_path: Path, source: str, target: str) -> None:
    dataset = load(tmp_path / f"in.{source}")
    out = tmp_path / (f"out.{target}" if target != "none" else "out")
    written = write_records(dataset, {4, 1, 3}, out)
    assert (written.path, written.records, written.unreadable) == (out, 3, 0)
    assert back(out) == [RECORDS[1], RECORDS[3], RECORDS[4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in.{source}", out.name])


def test_container_without_a_suffix_is_the_inputs(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.json")
    write_records(dataset, {0}, tmp_path / "out")
    assert (tmp_path / "out").read_bytes()[:1] == b"["


def test_jsonl_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        b'{"output":"a",  "instruction":"q\\u00e9", "x": 1.50e2, "x": NaN}',
        b'{"instruction": "q", "output": "b"}\r',
        b'{"instruction": "\\ud800 is bad", "output": "c"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(lines))
    write_records(open_dataset(path), {0, 1, 2}, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b"\n".join(lines) + b"\n"


def test_csv_stays_csv_with_its_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'instruction;output;id\n"a;""b""";"x\r\ny\rz";007\nc;d;\n')
    dataset = open_dataset(path)
    write_records(dataset, {0, 1}, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith(b"instruction;output;id\r\n")
    assert back(tmp_path / "out.csv") == back(path)
    for name in ("out.tsv", "out.jsonl", "out.parquet"):
        write_records(dataset, {0, 1}, tmp_path / name)
        assert back(tmp_path / name) == back(path)


def test_json_to_csv_names_every_column(tmp_path: Path) -> None:
    dataset = load(
        tmp_path / "in.jsonl", [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d", "k": [1]}]
    )
    write_records(dataset, {0, 1}, tmp_path / "out.csv")
    assert back(tmp_path / "out.csv") == [
        {"instruction": "a", "output": "b", "k": ""},
        {"instruction": "c", "output": "d", "k": "[1]"},
    ]


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "instruction": ["a", "b", "c"],
            "output": pa.array(["1", "2", "3"], pa.large_string()),
            "n": pa.array([1, 2, None], pa.int8()),
            "when": pa.array([when] * 3, pa.timestamp("us", "UTC")),
        }
    ).replace_schema_metadata({b"huggingface": b"{}", b"mine": b"kept"})
    pq.write_table(table, tmp_path / "in.parquet")
    dataset = open_dataset(tmp_path / "in.parquet")
    write_records(dataset, {0, 2}, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(table.take([0, 2]), check_metadata=True)
    write_records(dataset, {1}, tmp_path / "dropped.parquet", reasons={1: "too short"})
    dropped = pq.read_table(tmp_path / "dropped.parquet")
    assert dropped.schema.field("n").type == pa.int8() and dropped["tithe_reason"].to_pylist() == ["too short"]
    assert dict(dropped.schema.metadata) == {b"mine": b"kept"}
    write_records(dataset, {0}, tmp_path / "out.jsonl")
    assert back(tmp_path / "out.jsonl")[0]["when"] == "2024-05-06T00:00:00+00:00"


def test_a_json_object_keeps_the_name_of_its_list(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps({"version": 1, "rows": RECORDS}), encoding="utf-8")
    write_records(open_dataset(path), {5}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_bytes()) == {"rows": [RECORDS[5]]}


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.parquet", "out.csv"])
def test_no_records_make_a_valid_file(tmp_path: Path, name: str) -> None:
    assert write_records(load(tmp_path / "in.jsonl"), set(), tmp_path / name).records == 0
    if name == "out.json":
        assert json.loads((tmp_path / name).read_bytes()) == []
    if name == "out.parquet":
        assert pq.read_table(tmp_path / name).num_rows == 0


def test_dropped_records_carry_their_reason(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.jsonl")
    reasons: dict[int, str | list[str]] = {0: "score below the budget", 2: ["turn 1: too long", "turn 3: duplicate"]}
    write_records(dataset, set(reasons), tmp_path / "out.jsonl", reasons=reasons)
    assert back(tmp_path / "out.jsonl") == [RECORDS[row] | {"tithe_reason": reasons[row]} for row in (0, 2)]
    assert "é 0" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_dropped_rows_that_cannot_be_parsed_are_kept_as_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"instruction": "q", "output": "a"}\n{"broken\xff\n5\n')
    dataset = open_dataset(path)
    reasons = {1: "invalid JSON", 2: "not an object"}
    assert write_records(dataset, set(reasons), tmp_path / "out.jsonl", reasons=reasons).records == 2
    got = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert got == [
        {"tithe_raw": '{"broken\\xff', "tithe_reason": "invalid JSON"},
        {"tithe_raw": "5", "tithe_reason": "not an object"},
    ]
    assert write_records(dataset, {0, 1, 2}, tmp_path / "out.csv").unreadable == 2


def test_bad_rows_keep_their_own_shape(tmp_path: Path) -> None:
    bad = {"instruction": "q", "output": None}
    dataset = load(tmp_path / "in.jsonl", [*RECORDS, bad])
    write_records(dataset, {6}, tmp_path / "out.jsonl", shape="messages", reasons={6: "null"})
    assert json.loads((tmp_path / "out.jsonl").read_bytes()) == bad | {"tithe_reason": "null"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_dropped_file_can_be_dropped_from_again(tmp_path: Path, container: str) -> None:
    first, second = tmp_path / f"a.{container}", tmp_path / f"b.{container}"
    write_records(load(tmp_path / f"in.{container}"), {0, 1}, first, reasons={0: "a", 1: "a"})
    write_records(open_dataset(first), {1}, second, reasons={1: "b"})
    assert back(second) == [RECORDS[1] | {"tithe_reason": "b"}]


def test_sharegpt_to_other_shapes(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.jsonl", [DIALOGUE])
    said = [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in said]
    write_records(dataset, {0}, tmp_path / "m.jsonl", shape="messages")
    assert back(tmp_path / "m.jsonl") == [{"messages": messages, "kind": "k"}]
    write_records(dataset, {0}, tmp_path / "p.jsonl", shape="prompt-completion")
    assert back(tmp_path / "p.jsonl") == [{"prompt": messages[:4], "completion": messages[4:], "kind": "k"}]
    write_records(dataset, {0}, tmp_path / "a.jsonl", shape="alpaca")
    alpaca = {"instruction": "3", "input": "", "output": "4", "system": "s", "history": [["1", "2"]], "kind": "k"}
    assert back(tmp_path / "a.jsonl") == [alpaca]
    ids = [[item.id for item in open_dataset(tmp_path / name) if isinstance(item, Example)] for name in ("m.jsonl", "p.jsonl", "a.jsonl")]  # fmt: skip  # noqa: E501
    assert ids[0] == ids[1] == ids[2]  # the content is the same, so the id is


def test_chosen_turns(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.jsonl", [DIALOGUE, DIALOGUE])
    turns = {0: [2, 4], 1: [2]}
    assert write_records(dataset, turns, tmp_path / "s.jsonl").records == 2
    assert write_records(dataset, turns, tmp_path / "p.jsonl", shape="prompt-completion").records == 3
    write_records(dataset, turns, tmp_path / "m.jsonl", shape="messages")
    assert [len(record["messages"]) for record in back(tmp_path / "m.jsonl")] == [5, 3]


def test_alpaca_has_no_place_for_tool_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "1"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
    ]
    dataset = load(tmp_path / "in.jsonl", [{"conversations": turns}])
    with pytest.raises(OutputError, match="cannot hold tools") as error:
        write_records(dataset, {0}, tmp_path / "out.jsonl", shape="alpaca")
    assert error.value.hint == "write `messages`"
    assert not (tmp_path / "out.jsonl").exists()


def test_what_parquet_cannot_hold_is_one_sentence(tmp_path: Path) -> None:
    mixed = [{"instruction": "a", "output": "b", "x": 1}, {"instruction": "a", "output": "b", "x": "one"}]
    with pytest.raises(OutputError, match="do not fit the columns of a Parquet file") as error:
        write_records(load(tmp_path / "in.jsonl", mixed), {0, 1}, tmp_path / "out.parquet")
    assert error.value.hint == "write .jsonl"
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_output_that_exists_is_safe(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.jsonl")
    out = tmp_path / "out.jsonl"
    out.write_text("precious", encoding="utf-8")
    for attempt in (lambda: check_writable(out), lambda: write_records(dataset, {0}, out)):
        with pytest.raises(OutputError, match="exists") as error:
            attempt()
        assert "--overwrite" in (error.value.hint or "")
    assert out.read_text(encoding="utf-8") == "precious"
    write_records(dataset, {0}, out, overwrite=True)
    assert back(out) == RECORDS[:1]


def test_the_input_itself_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_records(load(path), {5}, path, overwrite=True)
    assert back(path) == RECORDS[5:]


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.csv", "out.parquet", "out.jsonl.gz", "out.jsonl.zst"])
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_leaves_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str) -> None:
    dataset = load(tmp_path / "in.jsonl")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr("tithe.data.export._WRITERS", dict.fromkeys(["jsonl", "json", "csv", "parquet"], full))
    with pytest.raises(OutputError, match="No space left on device"):
        write_records(dataset, {0, 1}, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_interrupt_leaves_no_debris(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "out.jsonl") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_packed_files_are_the_same_each_time(tmp_path: Path) -> None:
    dataset = load(tmp_path / "in.jsonl")
    for suffix in ("gz", "zst"):
        write_records(dataset, {1}, tmp_path / f"a.jsonl.{suffix}")
        write_records(dataset, {1}, tmp_path / f"b.jsonl.{suffix}")
        assert (tmp_path / f"a.jsonl.{suffix}").read_bytes() == (tmp_path / f"b.jsonl.{suffix}").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes())) == RECORDS[1]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path, words in [
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "out.jsonl", "cannot be written"),
        (tmp_path / "out.jsonl.xz", "xz files are not written"),
        (tmp_path / ("a" * 300), "cannot be written"),
    ]:
        with pytest.raises(OutputError, match=words):
            check_writable(path)
    check_writable(tmp_path / "new" / "folder" / "out.jsonl")
    write_records(load(tmp_path / "in.jsonl"), {0}, tmp_path / "new" / "folder" / "out.jsonl")


def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(OutputError, match="no permission to write"):
        check_writable(folder / "out.jsonl")


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_flipped_bit_of_a_packed_output_never_gives_other_records(tmp_path, suffix):
    """Flip each of 4,000 bits: reading gives the same content or an error."""
    path = tmp_path / f"out.jsonl.{suffix}"
    text = b"".join(b'{"instruction": "Add %d and 2.", "output": "%d"}\n' % (i, i + 2) for i in range(99))
    with atomic(path) as stream:
        stream.write(text)
    raw, refused = path.read_bytes(), 0
    for bit in range(min(4000, len(raw) * 8)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            with reading(path), unpacked(path) as stream:
                found = stream.read()
        except DataError:
            refused += 1
            continue
        assert found == text or not detect_packing(bytes(damaged[:4]))  # no longer recognised as compressed
    assert refused > 0.8 * min(4000, len(raw) * 8)


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_torn_packed_output_is_noticed(tmp_path, suffix):
    path = tmp_path / f"out.jsonl.{suffix}"
    with atomic(path) as stream:
        stream.write(b'{"output": "forty-two"}\n' * 9)
    raw = path.read_bytes()
    for damaged in (*(raw[:end] for end in range(5, len(raw))), raw + b"more", raw + raw[:7]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"), reading(path), unpacked(path) as stream:
            stream.read()
