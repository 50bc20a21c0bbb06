"""A folder of shards: what is read, what is skipped and named, and what stops a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.test_dataset import RECORDS, lines, put
from tithe.data.dataset import open_dataset
from tithe.errors import DataError
from tithe.records import Example


def test_what_is_passed_over_is_named_and_counted(tmp_path: Path) -> None:
    for name in (
        "a.jsonl",
        "b.json",
        "sub/c.jsonl",
        "notes.txt",
        "old.jsonl.bak",
        ".hidden.jsonl",
        "dataset_info.json",
    ):
        put(tmp_path / name, lines(RECORDS[:1]))
    os.mkfifo(tmp_path / "pipe.jsonl")
    dataset = open_dataset(tmp_path)
    assert sum(isinstance(item, Example) for item in dataset) == 2
    assert dataset.notes == [
        f"note: of `{tmp_path}` 2 files are read; skipped: 1 hidden: `.hidden.jsonl`; "
        "1 description of the data set: `dataset_info.json`; 2 other kinds of file: `notes.txt`, `old.jsonl.bak`; "
        "1 no regular file: `pipe.jsonl`; 1 sub-folder: `sub`"
    ]


def test_the_folder_of_a_run_is_no_data_set(tmp_path: Path) -> None:
    run = tmp_path / "best.tithe"
    run.mkdir()
    (run / "dropped.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    assert len(list(open_dataset(str(run)))) == 1
    for name in ("run.json", "scores.parquet"):
        (run / name).write_text("{}")
    with pytest.raises(DataError, match=r"best\.tithe` is a run folder, not a data set") as caught:
        open_dataset(str(run))
    assert "dropped.jsonl" in str(caught.value.hint)


def test_many_names_are_counted_and_some_are_shown(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    for number in range(7):
        put(tmp_path / f"{number}.txt", b"x")
    (note,) = open_dataset(tmp_path).notes
    assert note.endswith(
        "1 file is read; skipped: 7 other kinds of file: `0.txt`, `1.txt`, `2.txt`, `3.txt`, `4.txt` and 2 more"
    )


def test_a_folder_of_nothing_but_data_says_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    assert open_dataset(tmp_path).notes == []


@pytest.mark.parametrize("target", ["nowhere", "gone.jsonl"])
def test_a_link_that_leads_nowhere_stops_a_run(tmp_path: Path, target: str) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    (tmp_path / "gone.jsonl").symlink_to(target)  # the second is a link to itself
    with pytest.raises(DataError, match=r"gone\.jsonl` is a broken link"):
        open_dataset(tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "x.jsonl", lines(RECORDS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    assert len(list(open_dataset(tmp_path / "data"))) == len(RECORDS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("b.jsonl.xz", "packed with xz"),
        ("b.jsonl.bz2", "packed with bzip2"),
        ("b.json.lz4", "packed with LZ4"),
        ("b.parquet.zip", "a zip archive"),
        ("b.tar.gz", "a tar archive"),
        ("b.jsonl.tar.zst", "a tar archive"),
        ("data-00000-of-00001.arrow", "an Arrow file"),
        ("b.xlsx", "an Excel sheet"),
    ],
)
def test_data_that_cannot_be_read_stops_a_run(tmp_path: Path, name: str, words: str) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    put(tmp_path / name, b"x")
    with pytest.raises(DataError, match=f"`{tmp_path / name}` is {words}, its records cannot be read"):
        open_dataset(tmp_path)


def test_an_empty_shard_stops_a_run(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", lines(RECORDS))
    put(tmp_path / "b.jsonl", b"")
    with pytest.raises(DataError, match=r"b\.jsonl` is empty"):
        open_dataset(tmp_path)


def test_a_folder_whose_data_is_further_down_says_where(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train.jsonl", lines(RECORDS))
    with pytest.raises(DataError, match="holds no data file") as error:
        open_dataset(tmp_path)
    assert error.value.hint == f"name its folder `{tmp_path / 'data'}`"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\xff\xff\xff\xff\x10", "an Arrow stream"),
        (b"\x04\x22\x4d\x18", "packed with LZ4"),
        (b"a.jsonl".ljust(257, b"\0") + b"ustar", "a tar archive"),
    ],
)
def test_a_single_file_is_told_by_its_first_bytes(tmp_path: Path, start: bytes, words: str) -> None:
    with pytest.raises(DataError, match=f"is {words}, its records cannot be read"):
        open_dataset(put(tmp_path / "a.jsonl", start + bytes(300)))


def test_columns_that_differ_by_case_or_blanks_alone_are_named(tmp_path: Path) -> None:
    (note,) = open_dataset(put(tmp_path / "a.csv", b"instruction,output, Output\nq,a,b\n")).notes
    assert note == (
        "note: columns whose names differ only by case or blanks are different columns: `output`, ` Output`"
    )
