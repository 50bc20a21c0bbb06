"""Chosen records -> a file, in the input's own shape and order unless another is asked for."""

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
    DroppedRecords,
    Job,
    OutShape,
    Reason,
    files_of,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
)
from tithe.errors import OutputError, SettingsError, did_you_mean

__all__ = ["OutShape", "Written", "check_writable", "container_of", "write_records"]


@dataclass(frozen=True)
class Written:
    """What is in the file.

    Args:
        path: the file.
        records: how many.
        unreadable: chosen rows that are no objects, for which CSV and Parquet have no place.
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
) -> Written:
    """Write the chosen records: every column kept, in input order, whole or not at all.

    The container is the suffix's, else the input's (JSONL for the hub and for mixed folders). JSONL to JSONL
    copies the lines byte for byte. A record is written once however many of its turns were chosen, except
    that `prompt-completion` has one record for each. A row that cannot be parsed is written as the column
    `tithe_raw` to JSON and JSONL and left out, but counted, elsewhere.

    Args:
        dataset: where the records come from; read once more (twice for a container with a schema).
        rows: zero-based rows, or row -> chosen turns.
        path: where to; packed if it ends in `.gz` or `.zst`.
        shape: `same` as the input, or another.
        overwrite: replace a file that is there.
        reasons: row -> why it was dropped, written as the column `tithe_reason`.
        rewrite: write records that have the shape already in its plain spelling, instead of as they stand.
        dropped: takes the records that are not chosen, in the same reading.
        then: called when all is written, before the file takes its name.

    Raises:
        OutputError: the file exists, cannot be written, or cannot hold these records.
        SettingsError: no such shape.
    """
    if shape not in get_args(OutShape):
        raise SettingsError(f"no shape `{shape}`", hint=did_you_mean(shape, get_args(OutShape)))
    path = Path(path)
    chosen = rows if isinstance(rows, (Mapping, set, frozenset)) else frozenset(rows)
    job = Job(dataset, chosen, shape, reasons or {}, container_of(path, dataset), rewrite, dropped)
    try:
        with atomic(path, overwrite) as stream:
            records = _WRITERS[job.container](job, stream, path)
            if dropped is not None:
                dropped.take_rest(dataset)
            then()
    except (RecursionError, UnicodeEncodeError, csv.Error) as error:
        raise OutputError(f"a record cannot be written to `{path}`: {error}", hint="write .jsonl") from None
    return Written(path, records, len(job.left_out))


def write_dropped(dataset: Dataset, reasons: Mapping[int, Reason], path: Path) -> None:
    """Write the records of these rows with their reasons, as JSON lines whatever the input is.

    Bad rows have no place in a table of columns.
    """
    with atomic(path, overwrite=True) as stream:
        DroppedRecords(stream, reasons).take_rest(dataset)


def container_of(path: Path, dataset: Dataset) -> Container:
    """How records are laid out in an output of this name."""
    suffix = container_suffix(path)
    if suffix:
        return SUFFIXES[suffix]
    kinds = {file.container for file in files_of(dataset)}
    return kinds.pop() if len(kinds) == 1 else "jsonl"


_WRITERS: Mapping[Container, Callable[[Job, io.BufferedIOBase, Path], int]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}
