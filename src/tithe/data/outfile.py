"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zstandard
from safetensors import SafetensorError

from tithe.data.sniff import PACKED
from tithe.errors import OutputError

STANDARD_OUTPUT = "-"
DEVICES, OPEN_FILES = Path("/dev"), ("/dev/fd", "/proc")  # names there stand for devices, and for what is open
MAKE_ROOM = "make room (`df -h`, `df -i`, `quota`), or name a place on another disk"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_CANNOT = {".xz": "xz", ".bz2": "bzip2", ".zip": "zip", ".xlsx": "Excel", ".arrow": "Arrow"}


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Check that `atomic` could write here; to be called before any work is done.

    Raises:
        OutputError: it exists, is no regular file, cannot be written, or has a suffix that we cannot write.
    """
    path = Path(path)
    demand_file(path)
    if path.suffix.lower() in _CANNOT:
        hint = "write .jsonl, .json, .csv, .tsv or .parquet; .gz and .zst may follow"
        raise OutputError(f"`{path}`: {_CANNOT[path.suffix.lower()]} files are not written", hint=hint)
    with writing(path):
        if path.exists() and not overwrite:
            raise OutputError(f"the output `{path}` exists", hint="--overwrite replaces it")
        folder = target(path).parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise OutputError(f"the output `{path}` cannot be written: `{folder}` is not a folder")
        try:
            try_to_write(folder)
        except PermissionError:
            raise OutputError(f"the output `{path}` cannot be written: no permission to write in `{folder}`") from None


def demand_file(path: Path) -> None:
    """Refuse what is there and no regular file: replacing it would destroy a device or a pipe for everybody.

    Raises:
        OutputError: it is a folder, a device, a pipe or a socket, by itself or behind a link, or stands for one.
    """
    kind = None
    with writing(path), suppress(FileNotFoundError):
        kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise OutputError(f"the output `{path}` is a folder", hint="name a file in it")
    if kind in KINDS:
        raise OutputError(f"the output `{path}` is {KINDS[kind]}, and would be replaced by a file", hint="name a file")
    places = (target(path), Path.cwd() / path, target(path.parent) / path.name)
    system = any(place.parent == DEVICES or place.is_relative_to(top) for place in places for top in OPEN_FILES)
    if system or str(path) == STANDARD_OUTPUT:
        raise OutputError(f"the output `{path}` is no name for a file on a disk", hint="name a file")


def target(path: Path) -> Path:
    """Return the file that a name stands for: a link stays, and what it leads to is written."""
    return Path(os.path.realpath(path))


def try_to_write(folder: Path) -> None:
    """Make a file without a name in a folder: whatever stands against writing there is found before any work is done.

    Raises:
        OSError: a read-only or full file system, a quota, no permission, or a file system that takes no files.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"tithe")
        stream.flush()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system may say, by itself or through safetensors, into an `OutputError`."""
    try:
        yield
    except SafetensorError as error:
        raise OutputError(f"the output `{path}` cannot be written: {error}", hint=MAKE_ROOM) from None
    except OSError as error:
        raise OutputError(
            f"the output `{path}` cannot be written: {error.strerror or error}",
            hint=MAKE_ROOM if error.errno in NO_ROOM else None,
        ) from None


@contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[io.BufferedIOBase]:
    """Yield a binary file that takes its name when all is written and on disk; a failure leaves nothing behind.

    Where the name is a link, what it leads to is replaced, and the link stays. Packed as the suffix says (`.gz`,
    `.zst`), with the same bytes for the same content.

    Raises:
        OutputError: see `check_writable`, or the disk is full.
    """
    path = Path(path)
    check_writable(path, overwrite)
    real = target(path)
    part = real.with_name(f"{part_stem(real)}.{secrets.token_hex(4)}.part")
    try:
        with writing(path):
            real.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as raw:
                with _packed(raw, path) as stream:
                    yield stream
                raw.flush()
                os.fsync(raw.fileno())
            part.replace(real)
            _sync_folder(real.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def part_stem(path: Path) -> str:
    """Return how the name begins under which a file is written; short enough for any file system, in bytes."""
    return "." + os.fsencode(path.name)[:100].decode(errors="ignore")


@contextmanager
def _packed(raw: io.BufferedWriter, path: Path) -> Iterator[io.BufferedIOBase]:
    suffix = path.suffix.lower()
    if suffix not in PACKED:
        yield raw
        return
    packer: Any
    if suffix == ".gz":
        packer = gzip.GzipFile("", "wb", 6, raw, mtime=0)  # no name and no time inside
    else:
        packer = zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(raw, closefd=False)
    with packer:
        yield packer


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk; some file systems cannot do this and need not."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
