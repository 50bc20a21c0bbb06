"""MMLU's archive: whatever is wrong with it is one sentence."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from tithe.contamination.items import read_items
from tithe.errors import DataError
from tithe.lab.evaluate import task_files as tables
from tithe.lab.evaluate.task_files import mmlu_tables

ROW = b"Why,a,b,c,d,D\n"


def archive(rows: bytes = ROW * 40) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("data/s_test.csv", rows)
        packed.writestr("data/s_dev.csv", rows)
    return bytearray(stream.getvalue())


def with_method(raw: bytearray, number: int) -> bytearray:
    """Every file claims to be packed in this way."""
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := raw.find(mark, start + 1)) >= 0:
            raw[start + at] = number
    return raw


def with_password(raw: bytearray) -> bytearray:
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := raw.find(mark, start + 1)) >= 0:
            raw[start + at] |= 1
    return raw


def with_damage(raw: bytearray) -> bytearray:
    begin = raw.find(b"s_test.csv") + 10
    raw[begin : begin + 4] = b"\xff" * 4
    return raw


BROKEN = {
    "not a zip": bytearray(b"hello"),
    "cut off": archive()[:100],
    "damaged": with_damage(archive()),
    "another way of packing": with_method(archive(), 99),
    "bzip2 it is not": with_method(archive(), 12),
    "lzma it is not": with_method(archive(), 14),
    "a password": with_password(archive()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mmlu.zip"
    path.write_bytes(BROKEN[name])
    with pytest.raises(DataError, match="is not a readable zip file") as caught:
        mmlu_tables(path, "s")
    assert str(path) in str(caught.value) and caught.value.__cause__ is not None
    if path.read_bytes()[:4] == b"PK\x03\x04":
        with pytest.raises(DataError, match="is damaged or cannot be unpacked"):
            list(read_items(path))


@pytest.mark.parametrize(
    ("rows", "said"),
    [(b"\xff\n", "not UTF-8"), (b"a,b\n", "2 cells"), (b"", "is empty")],
)
def test_a_broken_table(tmp_path: Path, rows: bytes, said: str) -> None:
    path = tmp_path / "mmlu.zip"
    path.write_bytes(archive(rows))
    with pytest.raises(DataError, match=said):
        mmlu_tables(path, "s")


def test_a_table_is_unpacked_no_further_than_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mmlu.zip"
    path.write_bytes(archive())
    assert len(mmlu_tables(path, "s")["test"]) == 40
    monkeypatch.setattr(tables, "MOST_TABLE", 100)
    tables.read_tables.cache_clear()
    with pytest.raises(DataError, match="more than 100 bytes"):
        mmlu_tables(path, "s")
    tables.read_tables.cache_clear()
