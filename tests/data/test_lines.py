"""Compressed or endless input takes bounded memory and time: small chunks, limited records, regular files only."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tithe.contamination.items import read_items
from tithe.data import containers, jsonstream, lines, sniff
from tithe.data.containers import DataFile
from tithe.data.dataset import open_dataset
from tithe.data.lines import unpacked
from tithe.errors import DataError
from tithe.records import BadRow, Example

GOOD = json.dumps({"instruction": "q", "output": "a"}).encode()
LONG = json.dumps({"instruction": "q", "output": "a" * 9_000}).encode()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit records to 4,096 bytes; as always, text is read in chunks larger than the limit."""
    for module in (lines, containers, jsonstream, sniff):
        monkeypatch.setattr(module, "MOST_LINE", 1 << 12)
    monkeypatch.setattr(lines, "_CHUNK", 1 << 10)
    monkeypatch.setattr(jsonstream, "_CHUNK", 1 << 10)


def bomb(size: int, byte: bytes = b"a") -> bytes:
    """Return a Zstandard frame that expands to this many MiB of one byte."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False) as stream:
        for _ in range(size):
            stream.write(byte * (1 << 20))
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("pack", ["zst", "gz"])
def test_a_bomb_is_unpacked_in_bounded_chunks(tmp_path: Path, pack: str) -> None:
    path = tmp_path / f"d.jsonl.{pack}"
    path.write_bytes(bomb(600) if pack == "zst" else gzip.compress(b"a" * (600 << 20), 1))
    tracemalloc.start()
    try:
        with unpacked(path) as stream:
            assert sum(len(chunk) for chunk in iter(lambda: stream.read(1 << 20), b"")) == 600 << 20
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
        with pytest.raises(DataError, match="a record of more than 64 MiB"):
            open_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < 600 << 20  # a cut line, decoded, for a message
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_frames_one_after_the_other_and_one_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "d.zst"
    lines = b"".join(b"%d\n" % i for i in range(20_000))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (lines, b"", lines)]
    raw = b"".join(frames)
    path.write_bytes(raw[: len(raw) - cut])
    with unpacked(path) as stream:
        if not cut:
            assert stream.read() == lines * 2
        else:
            with pytest.raises(EOFError):
                stream.read()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_record_beyond_the_bound_is_a_bad_row(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b"\n" + LONG + b"\n" + GOOD + b"\n" + b" " * 9_000 + b"\n" + GOOD + b"\n" + LONG + end)
    found = list(open_dataset(path))
    assert [type(item) for item in found] == [Example, BadRow, Example, Example, BadRow]
    bad = [item for item in found if isinstance(item, BadRow)]
    assert [item.where for item in bad] == [f"{path}:2", f"{path}:6"] and "more than 64 MiB" in bad[0].reason
    with pytest.raises(DataError, match=r"d\.jsonl:2: a record of more than"):
        list(read_items(path))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("row", [b"q," + b"a" * 9_000, b'q,"' + b"a\n" * 5_000, b"," * 9_000])
def test_a_csv_row_beyond_the_bound_is_a_bad_row(tmp_path: Path, row: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    limit = csv.field_size_limit(1 << 12)
    path = tmp_path / "d.csv"
    path.write_bytes(b"instruction,output\nq,a\n" + row + b"\nq,b\n")
    rows = list(DataFile(path, "csv").rows())
    csv.field_size_limit(limit)
    good = [one.record["output"] for one in rows if one.fault is None]
    faults = [one.fault for one in rows if one.fault is not None]
    assert good[0] == "a" and good[-1] == "b" and faults


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("text", ['[{"instruction": "q", "output": "%s"}]', '{"data": [{"a": "%s"}]}', "[%s]"])
def test_a_json_value_beyond_the_bound(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text % ("a" * 20_000 if "%s]" not in text or "data" in text else "[" * 20_000))
    with pytest.raises(DataError, match=r"MiB|nested|is not an object"):
        open_dataset(path)


@pytest.mark.slow
@pytest.mark.parametrize("rest", [b"", GOOD + b"\n", b"[" + b" " * (1 << 20) + GOOD + b"]"])
def test_white_space_takes_no_time(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b" \n" * (32 << 20) + rest, 1))
    began = time.monotonic()
    if rest:
        assert [type(item) for item in open_dataset(path)] == [Example]
    else:
        with pytest.raises(DataError, match="only whitespace"):
            open_dataset(path)
    assert time.monotonic() - began < 60  # with quadratic time it was 86 s, at 1.35 s a MB


def test_lines_behind_blank_ones_have_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n \n\n  " + GOOD + b"\n\n" + GOOD)
    assert [item.where for item in open_dataset(path)] == [f"{path}:4", f"{path}:6"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "p.jsonl"
    os.mkfifo(pipe)
    for path, what in ((pipe, "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(DataError, match=f"`{path}` is {what} and not a file"):
            open_dataset(path)


def test_an_empty_name_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD + b"\n")
    monkeypatch.chdir(tmp_path)
    from tithe.errors import SettingsError

    for name in ("", " "):
        with pytest.raises(SettingsError, match="its name is empty"):
            open_dataset(name)


def test_one_line_with_all_records_beyond_the_bound(tmp_path: Path, short: Any) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"version": 1, "rows": [{"instruction": "q", "output": str(i)} for i in range(500)]}))
    assert len(list(open_dataset(path))) == 500
