"""The guard turns whatever a parser raises into one of our errors with its cause; damaged records are reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tithe.errors import DataError, StoreError
from tithe.foreign import demand_regular, foreign, read_json, read_small, shown


class PanicException(BaseException):  # as a library in Rust calls it
    """Looks like a panic of a library in Rust."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("what\nmore"), "`f` is damaged: what"),
        (ValueError(), "`f` is damaged: ValueError"),
        (KeyError("items"), "`f` is damaged: `items` is missing"),
        (IndexError("at 3"), "`f` is damaged: IndexError: at 3"),
        (TypeError("int"), "`f` is damaged: TypeError: int"),
        (RecursionError("x"), "`f` is damaged: it is nested too deeply"),
        (MemoryError(), "`f` is damaged: it does not fit into the memory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "`f` is damaged: not UTF-8 (invalid"),
        (OSError(5, "Input/output error"), "`f` is damaged: Input/output error"),
        (StopIteration(), "`f` is damaged: StopIteration"),
        (PanicException("index out of bounds"), "`f` is damaged: index out of bounds"),
        (ValueError("x" * 1_000), "`f` is damaged: xxx"),
    ],
)
def test_whatever_is_raised_is_one_sentence_with_its_cause(raised: BaseException, said: str) -> None:
    with pytest.raises(DataError) as caught, foreign(DataError, "`f` is damaged", "copy it again"):
        raise raised
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert caught.value.hint == "copy it again" and caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_ends_the_program_passes(raised: BaseException) -> None:
    with pytest.raises(type(raised)), foreign(DataError, "`f` is damaged"):
        raise raised


def test_an_error_of_ours_stays_as_it_is() -> None:
    ours = StoreError("mine", hint="h")
    with pytest.raises(StoreError) as caught, foreign(DataError, "`f` is damaged"):
        raise ours
    assert caught.value is ours


class Shape(BaseModel):
    """For `read_json`."""

    ids: list[str]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is damaged"),
        (b'{"ids": ["a"', "is damaged"),
        (b"[1]", "holds no JSON object"),
        (b"{}", "`ids`: Field required"),
        (b'{"ids": [1]}', "`ids.0`"),
        (b'{"ids": "a"}', "`ids`"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"ids": ' + b"9" * 5_000, "is damaged"),
    ],
)
def test_a_record_of_ours_that_is_damaged(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "cell.json"
    path.write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        read_json(path, StoreError, "delete it", Shape)
    assert said in str(caught.value) and f"`{path}`" in str(caught.value) and caught.value.hint == "delete it"


def test_a_record_may_hold_more(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text('{"ids": ["a"], "more": NaN}')
    assert read_json(path, StoreError, "delete it", Shape)["ids"] == ["a"]


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(DataError, match=what):
            read_small(path, DataError, 10)
    with pytest.raises(DataError, match="cannot read"):
        read_small(tmp_path / "none", DataError, 10)
    demand_regular(tmp_path, DataError)  # a folder's own words come from whoever opens it


def test_a_pipe_of_the_shell_may_be_read() -> None:
    end, other = os.pipe()
    os.write(other, b"limit: 3")
    os.close(other)
    assert read_small(Path(f"/dev/fd/{end}"), DataError, 10, piped=True) == b"limit: 3"
    os.close(end)


def test_no_more_is_read_than_a_file_of_its_kind_has(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 11)
    with pytest.raises(DataError, match="more than 10 bytes"):
        read_small(tmp_path / "f", DataError, 10)


@pytest.mark.parametrize(
    "value", ["x" * 10_000, [["y" * 1_000] * 1_000] * 1_000, 10**4_000, {i: i for i in range(10**5)}]
)
def test_a_value_in_a_message_is_short(value: Any) -> None:
    assert len(shown(value)) <= 120
    assert shown("a b") == "a b" and shown(5) == "5"
