"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zstandard

from ..errors import OutputError
from .sniff import PACKED

_CANNOT = {".xz": "xz", ".bz2": "bzip2", ".zip": "zip", ".xlsx": "Excel", ".arrow": "Arrow"}


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Whether `atomic` could write here; to be called before any work is done.

    Raises:
        OutputError: it exists, is a folder, cannot be written, or has a suffix that we cannot write.
    """
    path = Path(path)
    if path.suffix.lower() in _CANNOT:
        hint = "write .jsonl, .json, .csv, .tsv or .parquet; .gz and .zst may follow"
        raise OutputError(f"`{path}`: {_CANNOT[path.suffix.lower()]} files are not written", hint=hint)
    with writing(path):
        if path.is_dir():
            raise OutputError(f"the output `{path}` is a folder", hint="name a file in it")
        if path.exists() and not overwrite:
            raise OutputError(f"the output `{path}` exists", hint="--overwrite replaces it")
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise OutputError(f"the output `{path}` cannot be written: `{folder}` is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"the output `{path}` cannot be written: no permission to write in `{folder}`")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system may say into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"the output `{path}` cannot be written: {error.strerror or error}") from None


@contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[io.BufferedIOBase]:
    """A binary file that takes its name when all is written and on disk; a failure leaves nothing behind.

    Packed as the suffix says (`.gz`, `.zst`), with the same bytes for the same content.

    Raises:
        OutputError: see `check_writable`, or the disk is full.
    """
    path = Path(path)
    check_writable(path, overwrite)
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as raw:
                with _packed(raw, path) as stream:
                    yield stream
                raw.flush()
                os.fsync(raw.fileno())
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


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
