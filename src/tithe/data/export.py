"""Write chosen records to a file, in the input's order, and in its shape unless another is requested."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tithe.data.containers import Container
from tithe.data.dataset import Dataset
from tithe.data.outfile import atomic, check_writable
from tithe.data.sniff import SUFFIXES, container_suffix
from tithe.data.writers import (
    Beside,
    DroppedRecords,
    ExportJob,
    OutShape,
    Reason,
    files_of,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
)
from tithe.errors import OutputError, SettingsError, did_you_mean

__all__ = ["OutShape", "WrittenFile", "check_writable", "choose_container", "write_records"]


@dataclass(frozen=True)
class WrittenFile:
    """The result of writing records.

    Args:
        path: the file.
        records: number of records written.
        unreadable: number of chosen rows left out because they are not objects, which CSV and Parquet cannot hold.
    """

    path: Path
    records: int
    unreadable: int = 0


def write_records(
    dataset: Dataset,
    rows: Collection[int] | Mapping[int, Collection[int]],
    path: str | Path,
    *,
    shape: OutShape = "same",
    overwrite: bool = False,
    reasons: Mapping[int, Reason] | None = None,
    rewrite: bool = False,
    dropped: DroppedRecords | None = None,
    then: Callable[[], object] = lambda: None,
    beside: Beside | None = None,
) -> WrittenFile:
    """Write the chosen records atomically, in input order and with all their columns.

    The suffix decides the container; without one it is the input's (JSONL for the hub and for mixed folders). JSONL to
    JSONL copies the lines byte for byte. A record is written once however many of its turns were chosen, except in
    `prompt-completion`, which has one record for each. A row that cannot be parsed is written to JSON and JSONL in the
    column `tithe_raw`; other containers leave it out and count it.

    Args:
        dataset: the source of the records; read once more (twice for a container with a schema).
        rows: zero-based rows, or row -> chosen turns.
        path: output path; compressed if it ends in `.gz` or `.zst`.
        shape: `same` as the input, or another.
        overwrite: replace an existing file.
        reasons: row -> why it was dropped, written as the column `tithe_reason`.
        rewrite: rewrite records that already have the shape in its plain spelling, instead of copying them.
        dropped: receives the records that are not chosen, in the same pass.
        then: called when everything is written, before the file gets its name.
        beside: returns further columns of a record, such as its scores; None adds none.

    Raises:
        OutputError: the file exists, cannot be written, or cannot hold these records.
        SettingsError: unknown shape.
    """
    if shape not in get_args(OutShape):
        raise SettingsError(f"unknown shape `{shape}`", hint=did_you_mean(shape, get_args(OutShape)))
    path = Path(path)
    chosen = rows if isinstance(rows, (Mapping, set, frozenset)) else frozenset(rows)
    job = ExportJob(dataset, chosen, shape, reasons or {}, choose_container(path, dataset), rewrite, dropped, beside)
    try:
        with atomic(path, overwrite) as stream:
            records = _WRITERS[job.container](job, stream, path)
            if dropped is not None:
                dropped.take_rest(dataset)
            then()  # before the rename: if it fails, no output file appears
    except (RecursionError, UnicodeEncodeError, csv.Error) as error:
        raise OutputError(f"a record cannot be written to `{path}`: {error}", hint="write .jsonl") from None
    return WrittenFile(path, records, len(job.left_out))


def write_dropped(dataset: Dataset, reasons: Mapping[int, Reason], path: Path, beside: Beside | None = None) -> None:
    """Write the records of these rows with their reasons, and what `beside` returns.

    Always as JSON lines: a table of columns has no place for bad rows.
    """
    with atomic(path, overwrite=True) as stream:
        DroppedRecords(stream, reasons, beside).take_rest(dataset)


def choose_container(path: Path, dataset: Dataset) -> Container:
    """Return the container for an output path: the suffix's, else the input's."""
    suffix = container_suffix(path)
    if suffix:
        return SUFFIXES[suffix]
    # A folder of mixed kinds has no container of its own; JSONL can hold any record.
    kinds = {file.container for file in files_of(dataset)}
    return kinds.pop() if len(kinds) == 1 else "jsonl"


_WRITERS: Mapping[Container, Callable[[ExportJob, io.BufferedIOBase, Path], int]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}
