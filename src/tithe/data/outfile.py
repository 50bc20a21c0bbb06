"""Write a file atomically: it appears complete or not at all."""

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

from tithe.data.sniff import PACKED_SUFFIXES
from tithe.errors import OutputError

STANDARD_OUTPUT = "-"
DEVICES, OPEN_FILES = Path("/dev"), ("/dev/fd", "/proc")  # paths there name devices and open file handles
FREE_SPACE_HINT = "free some space (see `df -h`, `df -i`, `quota`), or write to another disk"
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SPECIAL_FILES = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_CANNOT = {".xz": "xz", ".bz2": "bzip2", ".zip": "zip", ".xlsx": "Excel", ".arrow": "Arrow"}


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Check that `atomic` can write here; call it before any work is done.

    Raises:
        OutputError: the path exists, is not a regular file, cannot be written, or has a suffix that we cannot write.
    """
    path = Path(path)
    demand_file(path)
    if path.suffix.lower() in _CANNOT:
        hint = "write .jsonl, .json, .csv, .tsv or .parquet; .gz and .zst may follow"
        raise OutputError(f"`{path}`: {_CANNOT[path.suffix.lower()]} files are not written", hint=hint)
    with writing(path):
        if path.exists() and not overwrite:
            raise OutputError(f"the output `{path}` exists", hint="--overwrite replaces it")
        folder = link_target(path).parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise OutputError(f"the output `{path}` cannot be written: `{folder}` is not a folder")
        try:
            try_to_write(folder)
        except PermissionError:
            raise OutputError(f"the output `{path}` cannot be written: no permission to write in `{folder}`") from None


def demand_file(path: Path) -> None:
    """Refuse a path that exists and is not a regular file: replacing a device or pipe would destroy it for everybody.

    Raises:
        OutputError: the path is a folder, device, pipe or socket, links to one, or names one.
    """
    kind = None
    with writing(path), suppress(FileNotFoundError):
        kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise OutputError(f"the output `{path}` is a folder", hint="name a file in it")
    if kind in SPECIAL_FILES:
        raise OutputError(
            f"the output `{path}` is {SPECIAL_FILES[kind]} and would be replaced by a file", hint="name a file"
        )
    # Only the folders are resolved in the last of the three: `/dev/stdout` itself is a link to an open file.
    places = (link_target(path), Path.cwd() / path, link_target(path.parent) / path.name)
    system = any(place.parent == DEVICES or place.is_relative_to(top) for place in places for top in OPEN_FILES)
    if system or str(path) == STANDARD_OUTPUT:
        raise OutputError(f"the output `{path}` does not name a file on a disk", hint="name a file")


def link_target(path: Path) -> Path:
    """Return the file behind a path: a link stays in place, and its target is written."""
    return Path(os.path.realpath(path))


def try_to_write(folder: Path) -> None:
    """Write a temporary file in a folder, to find out before any work is done whether files can be written there.

    Raises:
        OSError: the file system is read-only, full or takes no files, a quota is reached, or permission is missing.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"tithe")
        stream.flush()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system, also those that safetensors wraps, into an `OutputError`."""
    try:
        yield
    except SafetensorError as error:
        raise OutputError(f"the output `{path}` cannot be written: {error}", hint=FREE_SPACE_HINT) from None
    except OSError as error:
        raise OutputError(
            f"the output `{path}` cannot be written: {error.strerror or error}",
            hint=FREE_SPACE_HINT if error.errno in DISK_FULL_ERRORS else None,
        ) from None


@contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[io.BufferedIOBase]:
    """Yield a binary file that gets its name once everything is written and synced; a failure leaves nothing behind.

    If the path is a link, its target is replaced and the link stays. The suffixes `.gz` and `.zst` compress; the same
    content always gives the same bytes.

    Raises:
        OutputError: `check_writable` refuses the path, or the disk is full.
    """
    path = Path(path)
    check_writable(path, overwrite)
    real = link_target(path)
    part = real.with_name(f"{part_stem(real)}.{secrets.token_hex(4)}.part")
    try:
        with writing(path):
            real.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as raw:
                with _packed(raw, path) as stream:
                    yield stream
                raw.flush()
                os.fsync(raw.fileno())
            part.replace(real)  # after the sync: a crash never leaves the name on an incomplete file
            _sync_folder(real.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def part_stem(path: Path) -> str:
    """Return how a temporary file's name begins; cut by bytes, so that any file system takes it."""
    return "." + os.fsencode(path.name)[:100].decode(errors="ignore")


@contextmanager
def _packed(raw: io.BufferedWriter, path: Path) -> Iterator[io.BufferedIOBase]:
    suffix = path.suffix.lower()
    if suffix not in PACKED_SUFFIXES:
        yield raw
        return
    packer: Any
    if suffix == ".gz":
        packer = gzip.GzipFile("", "wb", 6, raw, mtime=0)  # no file name and no time stamp inside
    else:
        packer = zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(raw, closefd=False)
    with packer:
        yield packer


def _sync_folder(folder: Path) -> None:
    """Sync the rename to disk; some file systems cannot do this and need not."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
