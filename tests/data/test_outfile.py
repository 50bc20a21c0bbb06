"""Output files appear complete or not at all, and never replace anything but a file."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from tithe.data.outfile import atomic, check_writable, try_to_write
from tithe.errors import OutputError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices of POSIX")


def write(path: Path, content: bytes, overwrite: bool = True) -> None:
    with atomic(path, overwrite) as stream:
        stream.write(content)


@pytest.mark.parametrize("through_a_link", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "folder"])
def test_what_is_no_file_is_left_as_it_is(tmp_path: Path, kind: str, through_a_link: bool) -> None:
    real = tmp_path / "real"
    if kind == "device":
        real = Path(os.devnull)
    elif kind == "pipe":
        os.mkfifo(real)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(real))
    else:
        real.mkdir()
    path = real
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to(real)
    before = real.stat()
    for call in (lambda: check_writable(path, overwrite=True), lambda: write(path, b"x")):
        with pytest.raises(OutputError, match=f"is a {kind}"):
            call()
    after = real.stat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert stat.S_IFMT(after.st_mode) != stat.S_IFREG


@pytest.mark.parametrize("name", ["-", "/dev/new.jsonl", "/dev/fd/1", "/proc/self/fd/1", "/dev/stdout"])
def test_names_that_are_no_files_are_refused(name: str) -> None:
    with pytest.raises(OutputError, match=f"the output `{name}` (does not name a file|is a )"):
        check_writable(name, overwrite=True)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "far" / "real.jsonl")
    for content in (b"made", b"replaced"):  # the link is broken at first
        write(link, content)
        assert link.is_symlink() and (tmp_path / "far" / "real.jsonl").read_bytes() == content
    with pytest.raises(OutputError, match="exists"):
        check_writable(link)


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="Too many levels"):
        check_writable(tmp_path / "loop", overwrite=True)


@pytest.mark.parametrize("name", ["名" * 80 + ".jsonl", "a" * 249 + ".jsonl", "ä" * 124])
def test_a_name_as_long_as_a_name_may_be(tmp_path: Path, name: str) -> None:
    assert 245 < len(name.encode()) <= 255
    write(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OutputError, match="File name too long"):
        check_writable(tmp_path / ("a" * 256))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_stands_against_writing_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)) as caught:
        check_writable(tmp_path / "new" / "out.jsonl")
    assert ("free some space" in (caught.value.hint or "")) == (number != errno.EROFS)


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    try_to_write(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        try_to_write(Path("/proc"))
