"""Rows of files, folders and the hub: kinds are detected, damage is one sentence, nothing is held in memory."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tithe.data.containers import DataFile
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.hub import HubData
from tithe.data.jsonstream import JsonFault, JsonStream
from tithe.errors import DataError, MissingExtraError, SettingsError, TitheError
from tithe.extras import install_hint
from tithe.records import BadRow, Example

RECORDS = [{"instruction": f"q{i}\n\"é\"", "input": "", "output": f"a{i}, 🧑‍🚀\r\n"} for i in range(5)]  # fmt: skip


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_csv(path: Path, records: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def responses(dataset: Dataset) -> list[str]:
    items = list(dataset)
    assert all(isinstance(item, Example) for item in items), items
    return [item.response.content for item in items if isinstance(item, Example)]


def bad(dataset: Dataset) -> list[BadRow]:
    return [item for item in dataset if isinstance(item, BadRow)]


def sentence(error: pytest.ExceptionInfo[TitheError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


WANTED = [record["output"] for record in RECORDS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a"])
@pytest.mark.parametrize(
    ("content", "container"),
    [
        (lines(RECORDS), "jsonl"),
        (b"\xef\xbb\xbf" + lines(RECORDS), "jsonl"),
        (b"\n \n" + lines(RECORDS).replace(b"\n", b"\r\n\r\n"), "jsonl"),
        (lines(RECORDS).rstrip(b"\n"), "jsonl"),
        (json.dumps(RECORDS).encode(), "json"),
        (b"\xef\xbb\xbf  " + json.dumps(RECORDS, indent=2).encode(), "json"),
        (json.dumps({"version": [1, 2], "data": RECORDS, "n": 5}).encode(), "json"),
        (json.dumps({"meta": {"a": [{}]}, "data": RECORDS}, indent=1).encode(), "json"),
    ],
)
def test_json_kinds_are_found_by_looking(tmp_path: Path, name: str, content: bytes, container: str) -> None:
    dataset = open_dataset(put(tmp_path / name, content))
    assert isinstance(dataset.origin, DataFile) and dataset.origin.container == container
    assert responses(dataset) == WANTED
    assert responses(dataset) == WANTED  # again
    assert dataset.columns_seen == ("instruction", "input", "output")
    assert repr(dataset) == f"Dataset({str(tmp_path / name)!r}, format='alpaca', turns='last')"


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "q", "output": "a", "sources": [{"url": "x"}]},
    ],
)
def test_one_record_in_one_line_is_a_record_and_not_a_list(tmp_path: Path, record: dict[str, Any]) -> None:
    assert responses(open_dataset(put(tmp_path / "a.jsonl", lines([record])))) == ["a"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("content", [lines(RECORDS), json.dumps(RECORDS).encode()])
def test_packed_files_whatever_they_are_called(tmp_path: Path, pack: Any, content: bytes) -> None:
    assert responses(open_dataset(put(tmp_path / "a.bin", pack(content)))) == WANTED


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_packed_in_several_members(tmp_path: Path, pack: Any) -> None:
    content = pack(lines(RECORDS[:2])) + pack(lines(RECORDS[2:]))
    assert responses(open_dataset(put(tmp_path / "a.jsonl", content))) == WANTED


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";"), ("a.txt", "\t")])
def test_csv_with_any_delimiter(tmp_path: Path, name: str, delimiter: str) -> None:
    assert responses(open_dataset(put_csv(tmp_path / name, RECORDS, delimiter))) == WANTED


def test_csv_cells_may_hold_dialogues_and_a_megabyte(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * (1 << 20)}]
    path = put_csv(tmp_path / "a.csv", [{"messages": json.dumps(turns), "kind": "x"}])
    (item,) = open_dataset(path)
    assert isinstance(item, Example) and len(item.response.content) == 1 << 20 and item.columns == {"kind": "x"}


def test_ragged_and_broken_csv_rows_are_bad_rows(tmp_path: Path) -> None:
    text = b'instruction,output\nq,a\nq\nq,a,b\n"q"x,a\n\nq,\xff\nq,last\n'
    dataset = open_dataset(put(tmp_path / "a.csv", text))
    reasons = [item.reason for item in bad(dataset)]
    assert reasons[:2] == ["1 cells, the header has 2", "3 cells, the header has 2"]
    assert reasons[2].startswith("invalid CSV: ")
    assert reasons[3].startswith("a lone surrogate (U+DCFF)")
    assert len(list(dataset)) == 6
    assert bad(dataset)[0].where == f"{tmp_path / 'a.csv'}:3"


def test_parquet_by_batches(tmp_path: Path) -> None:
    many = RECORDS * 300
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "a.parquet", row_group_size=200)
    (tmp_path / "a.parquet").rename(tmp_path / "noname")
    assert responses(open_dataset(tmp_path / "noname")) == WANTED * 300
    assert len(list(open_dataset(tmp_path / "noname", limit=700))) == 700


def test_null_columns_of_parquet_count_as_absent(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "q", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "tools": None}]), tmp_path / "a.parquet")
    (item,) = open_dataset(tmp_path / "a.parquet")
    assert isinstance(item, Example) and item.response.tool_calls


def test_folder_by_name_with_rows_counted_through(tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", lines(RECORDS[2:]))
    put(tmp_path / "a.json", json.dumps(RECORDS[:2]).encode())
    put(tmp_path / "README.md", b"# hello")
    put(tmp_path / "dataset_info.json", b"{}")
    put(tmp_path / ".hidden.jsonl", b"x")
    dataset = open_dataset(tmp_path)
    assert responses(dataset) == WANTED
    assert [number for number, _ in dataset.records()] == [0, 1, 2, 3, 4]
    assert [record for _, record in dataset.records()] == RECORDS


def test_folder_of_different_shapes_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    put(tmp_path / "b.jsonl", lines([{"conversations": []}]))
    with pytest.raises(DataError, match=r"`b.jsonl` holds `sharegpt` records, `a.jsonl` before it `alpaca`"):
        open_dataset(tmp_path)


def test_limit_is_records_from_the_start(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(RECORDS))
    assert responses(open_dataset(path, limit=2)) == WANTED[:2]
    with pytest.raises(SettingsError):
        open_dataset(path, limit=0)


def test_ids_survive_reordering_and_extra_columns(tmp_path: Path) -> None:
    one = open_dataset(put(tmp_path / "a.jsonl", lines(RECORDS + RECORDS[:1])))
    shuffled = [dict(reversed(list(record.items()))) | {"n": 1} for record in reversed(RECORDS + RECORDS[:1])]
    two = open_dataset(put(tmp_path / "b.json", json.dumps(shuffled).encode()))
    ids = [{item.id for item in dataset if isinstance(item, Example)} for dataset in (one, two)]
    assert ids[0] == ids[1] and len(ids[0]) == 6
    assert sum(name.endswith("-1") for name in ids[0]) == 1


def test_digest_follows_the_bytes(tmp_path: Path) -> None:
    path = put(tmp_path / "d" / "a.jsonl", lines(RECORDS))
    file, folder = open_dataset(path), open_dataset(path.parent)
    before = file.digest(), folder.digest()
    assert before == (file.digest(), folder.digest())
    put(path, lines(RECORDS) + b" ")
    assert file.digest() != before[0] and folder.digest() != before[1]


def test_mixed_records_are_bad_rows_or_stop_a_strict_run(tmp_path: Path) -> None:
    other = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    path = put(tmp_path / "a.jsonl", lines([*RECORDS, other, 5]))
    rows = bad(open_dataset(path))
    assert [(row.row, row.where, row.reason) for row in rows] == [
        (5, f"{path}:6", "looks like `sharegpt`, the file is `alpaca`"),
        (6, f"{path}:7", "the record is a number, it must be an object"),
    ]
    with pytest.raises(DataError) as error:
        list(open_dataset(path, strict=True))
    assert str(error.value) == f"{path}:6: looks like `sharegpt`, the file is `alpaca`"


def test_format_can_be_named(tmp_path: Path) -> None:
    both = {"prompt": "q", "completion": "from prompt", "instruction": "q", "output": "from alpaca"}
    path = put(tmp_path / "a.jsonl", lines([both]))
    assert responses(open_dataset(path)) == ["from alpaca"]
    assert responses(open_dataset(path, format="prompt-completion")) == ["from prompt"]
    with pytest.raises(SettingsError) as error:
        open_dataset(path, format="alpacca")
    assert error.value.hint == "did you mean `alpaca`?"


def test_a_broken_line_is_a_bad_row_with_its_place(tmp_path: Path) -> None:
    text = lines(RECORDS[:1]) + b'{"instruction": "q", output: 1}\n\xff\xfe\n' + lines(RECORDS[1:])[:-20]
    path = put(tmp_path / "a.jsonl", text)
    rows = bad(open_dataset(path))
    assert rows[0].where == f"{path}:2:22"
    assert rows[0].reason == "invalid JSON: Expecting property name enclosed in double quotes at column 22"
    assert rows[1].reason == "not UTF-8 at byte 1 of the line"
    assert rows[2].row == 6 and rows[2].reason.startswith("invalid JSON: Unterminated string")  # the file's cut end
    with pytest.raises(DataError, match=r"a.jsonl:2:22: invalid JSON"):
        list(open_dataset(path, strict=True))


def test_a_truncated_first_line_does_not_make_it_another_kind(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"instruction": "q", "out\n' + lines(RECORDS))
    assert len(bad(open_dataset(path))) == 1


def test_a_number_or_nesting_without_end_is_a_bad_row(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(RECORDS) + b"1" * 5000 + b"\n" + b"[" * 100_000 + b"\n")
    assert [row.reason.split(":")[0] for row in bad(open_dataset(path))] == ["invalid JSON"] * 2


def test_nan_and_a_megabyte_pass(tmp_path: Path) -> None:
    text = b'{"instruction": "q", "output": "%s", "x": NaN, "y": Infinity}\n' % (b"a" * (1 << 20))
    (item,) = open_dataset(put(tmp_path / "a.jsonl", text))
    assert isinstance(item, Example) and item.columns["y"] == float("inf")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "holds no records, only whitespace"),
        (
            b"hello\nworld\n",
            "holds no readable record; the first, {path}:1:1: invalid JSON: Expecting value at column 1",
        ),
        (b"5\n6\n", "holds no readable record; the first, {path}:1: the record is not an object"),
        (b"[]", "holds no records"),
        (b"{}\n", "records of no known shape: there is no field"),
        (b'{"text": "a"}\n', "records of no known shape: there is `text`"),
        (
            b'[{"instruction": "a", "output": "b"}, {"instruc',
            "{path}:1:40: invalid JSON: Unterminated string starting at",
        ),
        (b'[{"instruction": "a", "output": "b"} {}]', "{path}:1:38: invalid JSON: expected `,`, found `{{`"),
        (b'[{"instruction": "a"}\n] x', "{path}:2:3: invalid JSON: there is more text after the end of the list"),
        (b'{"a": [{"x": 1}],\n"b": [{"x": 1}]}', "two lists of records, `a` and `b`: it is unclear which one to read"),
        (b'{\n"a": 1\n}', "records of no known shape: there is `a`"),
        (b"instruction,output\n", "holds no records"),
        (b"instruction,output,output\nq,a,b\n", "has two columns named `output`"),
        (b"PK\x03\x04abc", "is a zip archive (or an Excel sheet), its records cannot be read"),
        (b"\xff\xfe{\x00", "is UTF-16 text"),
        (b"PAR1abcdef", "is not a readable Parquet file"),
        (b"\x1f\x8b\x08\x00rubbish", "is damaged"),
        (gzip.compress(lines(RECORDS))[:-12], "is damaged"),
        (b"\x28\xb5\x2f\xfdrubbish", "is damaged"),
        (zstandard.ZstdCompressor().compress(lines(RECORDS))[:-4], "is damaged: the last Zstandard frame is cut off"),
        (b'[{"instruction": "\xff"}]', "is not UTF-8"),
    ],
)
def test_unreadable_files_in_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = put(tmp_path / "a.data", content)
    with pytest.raises(DataError) as error:
        list(open_dataset(path))
    assert words.format(path=path) in sentence(error)
    assert "a.data" in str(error.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    put(tmp_path / "alpaca.jsonl", lines(RECORDS))
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "alpacca.jsonl")
    assert sentence(error) == f"no file or folder `{tmp_path / 'alpacca.jsonl'}`"
    assert error.value.hint == f"in `{tmp_path}` there is `alpaca.jsonl`"
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "no" / "where.jsonl")
    assert error.value.hint == f"there is no folder `{tmp_path / 'no'}` either"
    with pytest.raises(DataError):
        open_dataset("~nobody-here/x.jsonl")
    with pytest.raises(DataError):
        open_dataset("a" * 5000 + ".jsonl")


def test_a_folder_without_data_says_what_is_read(tmp_path: Path) -> None:
    put(tmp_path / "notes.md", b"x")
    with pytest.raises(DataError, match="holds no data file") as error:
        open_dataset(tmp_path)
    assert ".parquet" in (error.value.hint or "")
    with pytest.raises(SettingsError, match="is no data set of the hub and has no splits"):
        open_dataset(tmp_path, split="train")


def test_no_permission(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(RECORDS))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="no permission to read"):
        open_dataset(path)


class FakeHub(types.ModuleType):
    """A fake of both `datasets` and `huggingface_hub` with one data set."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.calls: list[dict[str, Any]] = []

    def load_dataset(self, name: str, **options: Any) -> Any:
        self.calls.append({"name": name, **options})
        if name != "owner/alpaca":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nand more")
        return iter(RECORDS)

    def HfApi(self) -> Any:
        def dataset_info(name: str, timeout: int, files_metadata: bool = False, revision: str | None = None) -> Any:
            files = {"README.md": 9000, "data/train-0.parquet": 400, "data/train-1.parquet": 200, "data/test.jsonl": 50}
            sizes = {file: size if files_metadata else None for file, size in files.items()}
            named = [types.SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()]
            return types.SimpleNamespace(sha="c0ffee", siblings=named)

        return types.SimpleNamespace(dataset_info=dataset_info)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_a_hub_id_is_streamed_at_one_commit(hub: FakeHub) -> None:
    dataset = open_dataset("owner/alpaca")
    assert responses(dataset) == WANTED
    assert {(call["split"], call["streaming"], call["revision"]) for call in hub.calls} == {("train", True, "c0ffee")}
    assert dataset.digest() == open_dataset("owner/alpaca").digest()
    assert dataset.digest() != open_dataset("owner/alpaca", split="test").digest()


def test_how_large_a_hubs_files_are(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"data/train-0.parquet": 400, "data/train-1.parquet": 200}
    assert HubData("owner/alpaca", "train", "c0ffee").sizes() == train
    # A split that no file name contains may be in any file.
    assert HubData("owner/alpaca", "validation", "c0ffee").sizes() == train | {"data/test.jsonl": 50}
    monkeypatch.setattr(FakeHub, "HfApi", lambda _: 1 / 0)
    assert HubData("owner/alpaca", "train", "c0ffee").sizes() == {}


def test_an_unknown_hub_id_says_that_both_were_tried(hub: FakeHub) -> None:
    with pytest.raises(DataError) as error:
        open_dataset("owner/alpacca")
    assert sentence(error).startswith("no file `owner/alpacca` here, and its split `train` could not be read")
    assert "doesn't exist on the Hub" in str(error.value)


def test_the_hub_needs_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError) as error:
        open_dataset("owner/alpaca")
    assert install_hint("hub") in (error.value.hint or "")


class Drip:
    """A text stream that returns a few characters at a time, so that every JSON token is cut somewhere."""

    def __init__(self, text: str, step: int) -> None:
        self.text, self.step, self.at = text, step, 0

    def read(self, size: int) -> str:
        self.at += self.step
        return self.text[self.at - self.step : self.at]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_json_is_streamed_over_any_cut(step: int) -> None:
    records: list[Any] = [{"a": 'x"y\\', "b": [1.5e3, True, None]}, {"é": "😀"}, 1234567, "s", -1.25, [], {}]
    for text, wrapper in (
        (json.dumps(records), None),
        (json.dumps(records, indent=3), None),
        (json.dumps({"n": 12, "k": [1], "d": [{}, *records]}), "d"),
    ):
        if wrapper is not None:
            assert JsonStream(Drip(text, step)).find_wrapper(()) == wrapper  # type: ignore[arg-type]
        got = [value for _, value in JsonStream(Drip(text, step)).records(wrapper)]  # type: ignore[arg-type]
        assert got[-7:] == records
    with pytest.raises(JsonFault):
        list(JsonStream(Drip(json.dumps(records)[:-3], step)).records())  # type: ignore[arg-type]


def test_lines_of_a_json_list_are_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", json.dumps([{**record, "output": ""} for record in RECORDS], indent=2).encode())
    assert [row.where.rsplit(":")[-1] for row in bad(open_dataset(path))] == ["2", "7", "12", "17", "22"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    records = [{"instruction": f"{i} " + "q" * 500, "output": "a" * 1500} for i in range(10_000)]  # 20 MB
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=1000, use_dictionary=False)
    elif name == "a.csv":
        put_csv(path, records)
    else:
        put(path, lines(records) if name == "a.jsonl" else json.dumps(records).encode())
    del records
    tracemalloc.start()
    assert sum(isinstance(item, Example) for item in open_dataset(path)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9e6, f"{peak / 1e6:.1f} MB at peak"
