"""What a data set's name stands for: several files, patterns, standard input, addresses."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zstandard

from tithe.data.dataset import Dataset, open_dataset
from tithe.data.input_check import InputCheck
from tithe.data.locating import absolute_name, local_paths, matches, read_stdin
from tithe.data.remote import check_address
from tithe.errors import DataError, MissingExtraError, SettingsError
from tithe.records import Example
from tithe.settings import ExampleSettings


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}).encode() + b"\n" for i in numbers)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with b.jsonl (2, 3), a.jsonl (0, 1), sub/c.jsonl.zst (4), notes.md; the current one."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(lines(2, 3))
    (tmp_path / "a.jsonl").write_bytes(lines(0, 1))
    (tmp_path / "sub" / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(4)))
    (tmp_path / "notes.md").write_text("# Notes\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(dataset: Dataset) -> list[int]:
    return [int(item.response.content[1:]) for item in dataset if isinstance(item, Example)]


# Several files, and patterns.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.jsonl,a.jsonl", [2, 3, 0, 1]),  # in the order given
        ("*.jsonl", [0, 1, 2, 3]),  # by name
        ("[b].jsonl", [2, 3]),
        ("?.jsonl", [0, 1, 2, 3]),
        ("**/*.jsonl*", [0, 1, 2, 3, 4]),
        ("sub,a.jsonl", [4, 0, 1]),
        ("sub/*,[a]*.jsonl", [4, 0, 1]),
    ],
)
def test_a_name_stands_for_these_files_in_this_order(here: Path, name: str, expected: list[int]) -> None:
    assert numbers(open_dataset(name)) == expected
    (elsewhere := here / "elsewhere").mkdir()
    absolute = absolute_name(name)
    assert absolute is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        assert numbers(open_dataset(absolute)) == expected
    assert InputCheck(open_dataset(name)).describe()["path"] == absolute


def test_a_file_whose_name_looks_like_a_pattern_or_a_list_is_that_file(here: Path) -> None:
    (here / "[a].jsonl").write_bytes(lines(7))
    (here / "a.jsonl,b.jsonl").write_bytes(lines(8))
    assert numbers(open_dataset("[a].jsonl")) == [7]
    assert numbers(open_dataset("a.jsonl,b.jsonl")) == [8]


def test_a_pattern_says_what_it_passed_over(here: Path) -> None:
    assert open_dataset("*").notes == [
        "note: of `*` 2 files are read; skipped: 1 other kind of file: `notes.md`; 1 sub-folder: `sub`"
    ]
    (here / "part-000").write_bytes(lines(5))
    assert numbers(open_dataset("part-*")) == [5]  # named on purpose: its content decides


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q*.jsonl", "the pattern `q*.jsonl` matches nothing"),
        ("su[b]", "the pattern `su[b]` matches no data file"),
        ("a.jsonl,gone.jsonl", "no file or folder `gone.jsonl`"),
        ("a.jsonl,", "the list of files `a.jsonl,` has an empty name in it"),
        ("a.jsonl,./a.jsonl", "`a.jsonl` is named twice: its records would count twice"),
        ("*.jsonl,b.jsonl", "`b.jsonl` is named twice: its records would count twice"),
    ],
)
def test_a_name_that_does_not_stand_for_files_is_one_sentence(here: Path, name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(name)
    assert str(caught.value) == said


def test_a_list_from_yaml_or_python_is_joined(here: Path) -> None:
    assert ExampleSettings.of({"dataset": ["a.jsonl", "b.jsonl"]}).dataset == "a.jsonl,b.jsonl"
    assert ExampleSettings.of({"dataset": ["one,name.jsonl"]}).dataset == "one,name.jsonl"
    with pytest.raises(SettingsError, match=r"`one,name\.jsonl` has a comma in its name"):
        ExampleSettings.of({"dataset": ["one,name.jsonl", "b.jsonl"]})


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.jsonl", "x.jsonl", True),
        ("*.jsonl", "sub/x.jsonl", False),
        ("**/*.jsonl", "sub/x.jsonl", True),
        ("**/*.jsonl", "x.jsonl", True),
        ("**/*.jsonl", "x.json", False),
        ("x.json,*.jsonl", "x.jsonl", True),
        ("a.jsonl", "a.jsonl", False),  # no pattern
        ("https://host/*.jsonl", "x.jsonl", False),
    ],
)
def test_what_a_pattern_would_match(here: Path, pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, Path(path)) is expected


# Standard input.


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    read_stdin.cache_clear()
    yield
    read_stdin.cache_clear()


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("packed", [False, True])
def test_records_come_through_a_pipe(
    here: Path, piped: None, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool
) -> None:
    content = lines(0, 1)
    feed(monkeypatch, zstandard.ZstdCompressor().compress(content) if packed else content)
    dataset = open_dataset(name)
    assert numbers(dataset) == numbers(dataset) == numbers(open_dataset(name)) == [0, 1]
    # The same bytes as in a file are the same data, so that a run of one goes on with the answers of the other.
    if not packed:
        assert dataset.digest() == open_dataset("a.jsonl").digest()
    assert InputCheck(dataset).describe()["gone"] is True
    assert local_paths(name) == []


def test_a_bad_row_of_a_pipe_names_the_line_not_the_copy(piped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, lines(0) + b"{broken\n")
    (bad,) = [item for item in open_dataset("-") if not isinstance(item, Example)]
    assert bad.where == "standard input:2:2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the standard input is empty: no records came"),
        (b" \n", "`standard input` holds no records, only whitespace"),
        (b"PK\x03\x04", "`standard input` is a zip archive (or an Excel sheet), its records cannot be read"),
    ],
)
def test_a_pipe_that_holds_no_records(piped: None, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str) -> None:
    feed(monkeypatch, content)
    with pytest.raises(DataError) as caught:
        open_dataset("-")
    assert str(caught.value) == said


def test_a_terminal_is_not_waited_for(piped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(DataError, match="the standard input is a terminal"):
        open_dataset("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="the standard input is closed"):
        open_dataset("-")


# Addresses.


@pytest.fixture
def server(here: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(here))) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_a_file_at_an_address(server: str, here: Path) -> None:
    dataset = open_dataset(f"{server}/a.jsonl")
    assert numbers(dataset) == [0, 1] and dataset.digest() == open_dataset("a.jsonl").digest()
    assert numbers(open_dataset(f"{server}/sub/c.jsonl.zst?download=true")) == [4]
    (here / "bad.jsonl").write_bytes(lines(0) + b"{\n")
    (bad,) = [item for item in open_dataset(f"{server}/bad.jsonl") if not isinstance(item, Example)]
    assert bad.where.startswith(f"{server}/bad.jsonl:2")
    # Nothing is kept between two openings that could be out of date.
    (here / "a.jsonl").write_bytes(lines(9))
    assert numbers(open_dataset(f"{server}/a.jsonl")) == [9] and numbers(dataset) == [0, 1]


def test_there_is_nothing_at_an_address(server: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(f"{server}/gone.jsonl")
    assert str(caught.value) == f"there is no file `{server}/gone.jsonl`"
    with pytest.raises(DataError, match=r"`http://127\.0\.0\.1:1/a\.jsonl` cannot be read: "):
        open_dataset("http://127.0.0.1:1/a.jsonl")
    with pytest.raises(SettingsError, match="has no splits"):
        open_dataset(f"{server}/a.jsonl", split="train")


def test_a_store_of_objects_and_patterns_in_it() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name, content in (("two.jsonl", lines(2)), ("one.jsonl", lines(1)), ("deep/three.jsonl", lines(3))):
        store.pipe_file(f"/bucket/{name}", content)
    try:
        assert numbers(open_dataset("memory://bucket/two.jsonl")) == [2]
        assert numbers(open_dataset("memory://bucket/*.jsonl")) == [1, 2]
        assert numbers(open_dataset("memory://bucket/**/*.jsonl")) == [3, 1, 2]
        with pytest.raises(DataError, match="matches nothing"):
            open_dataset("memory://bucket/*.csv")
        with pytest.raises(DataError, match="`memory://bucket/deep`"):
            open_dataset("memory://bucket/deep")
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://user:geheim@host/a.jsonl", "the address of `https://host/a.jsonl` holds a user or password"),
        ("https://geheim@host/a.jsonl", "the address of `https://host/a.jsonl` holds a user or password"),
        ("https://host/a.jsonl?X-Amz-Signature=geheim", "`https://host/a.jsonl` holds a key"),
        ("https://host/a.jsonl?access_token=geheim", "`https://host/a.jsonl` holds a key"),
        ("https://host/a.jsonl?sig=geheim&x=1", "`https://host/a.jsonl` holds a key"),
        ("file:///etc/passwd", "`file:///etc/passwd` is on this disk"),
        ("zip://a.csv::https://host/geheim.zip", "`zip://a.csv` chains several schemes"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_dataset(address)
    assert said in str(caught.value) and "geheim" not in f"{caught.value}{caught.value.hint}"


def test_an_ordinary_query_is_no_secret() -> None:
    check_address("https://host/a.jsonl?download=true&revision=main")


def test_a_scheme_that_needs_a_package_or_is_unknown() -> None:
    with pytest.raises(DataError, match="`gopher://` is no scheme that can be read"):
        open_dataset("gopher://host/a.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(MissingExtraError) as caught:
            open_dataset("s3://bucket/a.jsonl")
    assert str(caught.value) == "reading from `s3://` needs the package `s3fs`"
    assert caught.value.hint == "pip install s3fs"


def test_a_whole_data_set_of_the_hub_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(name: str, split: str) -> None:
        asked.append((name, split))
        raise DataError("enough")

    monkeypatch.setattr("tithe.data.locating.open_hub", opened)
    for name in ("hf://datasets/owner/name", "owner/name"):
        with pytest.raises(DataError, match="enough"):
            open_dataset(name, split="test")
    assert asked == [("owner/name", "test")] * 2
