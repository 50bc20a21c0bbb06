"""The run folder: one process at a time, every file whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from tithe.data.outfile import atomic, writing
from tithe.errors import OutputError, StoreError

SUFFIX = ".tithe"


def default_folder(output: Path) -> Path:
    """`kept.jsonl` -> `kept.tithe`, beside it."""
    name = output.name
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return output.with_name(Path(name).stem + SUFFIX)


@contextmanager
def run_folder(path: Path | None) -> Iterator[Path]:
    """The folder, made and locked for this process; a temporary one where None is given.

    Raises:
        StoreError: another process has it.
        OutputError: it cannot be made or written to.
    """
    if path is None:
        with tempfile.TemporaryDirectory(prefix="tithe-") as scratch:
            yield Path(scratch)
        return
    if path.exists() and not path.is_dir():
        raise OutputError(f"the run folder `{path}` is a file", hint="name another with `--run-dir`")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in the run folder `{path}`", hint="name another with `--run-dir`")
    lock = FileLock(path / ".lock")  # the operating system lets go of it when a process dies
    try:
        with writing(path):
            lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            f"another process is working in the run folder `{path}`", hint="wait for it, or name another `--run-dir`"
        ) from None
    try:
        yield path
    finally:
        lock.release()


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, whole or not at all; the same table gives the same bytes."""
    with atomic(path, overwrite=True) as stream:
        pq.write_table(table, stream, compression="zstd")


def write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic(path, overwrite=True) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n")
