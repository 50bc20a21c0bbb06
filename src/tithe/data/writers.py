"""Chosen records in the layouts of a file: JSONL, JSON, CSV."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tithe.data.containers import Container, DataFile, Row
from tithe.data.files import Dataset, Folder
from tithe.data.shapes import reshape
from tithe.data.sniff import container_suffix

OutShape: TypeAlias = Literal["same", "messages", "alpaca", "prompt-completion"]
Reason: TypeAlias = str | list[str]


@dataclass(frozen=True)
class Job:
    """Which records go where; `out` is what the file holds, already in its final form.

    Args:
        dataset: where they come from.
        rows: those that are chosen.
        shape: in which they are written.
        reasons: row -> why it was dropped.
        container: how they are laid out.
        rewrite: whether records of that shape are spelt anew.
        dropped: takes the others; None leaves them out.
        left_out: chosen rows that are no objects, for which the container has no place.
    """

    dataset: Dataset
    rows: Collection[int]
    shape: OutShape
    reasons: Mapping[int, Reason]
    container: Container
    rewrite: bool = False
    dropped: DroppedRecords | None = None
    left_out: set[int] = field(default_factory=set)

    @property
    def as_is(self) -> bool:
        return self.shape == "same" or (self.shape == self.dataset.format and not self.rewrite)

    def chosen(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.dataset.rows():
            if number in self.rows:
                yield number, row
            elif self.dropped is not None:
                self.dropped.take(number, row)

    def out(self) -> Iterator[dict[str, Any]]:
        """The records to be written; a row that cannot be parsed as its text, where the container allows it."""
        for number, row in self.chosen():
            reason = {"tithe_reason": self.reasons[number]} if number in self.reasons else {}
            if row.fault is not None or not isinstance(row.record, dict):
                if self.container in ("json", "jsonl"):
                    yield as_it_stands(row) | reason
                else:
                    self.left_out.add(number)
            elif self.as_is:
                yield row.record | reason
            else:
                turns = self.rows[number] if isinstance(self.rows, Mapping) else None
                others = list(reshape(row.record, self.dataset.format, self.shape, turns, row.where))
                for record in others or [row.record]:  # a bad row has no other shape
                    yield record | reason


@dataclass
class DroppedRecords:
    """Writes the records that are not chosen as JSON lines, while the chosen ones go elsewhere: one reading for both.

    Args:
        stream: takes the lines.
        reasons: row -> why it was dropped.
        last: the last row that was taken; some layouts go over the records twice.
        taken: how many were.
    """

    stream: io.BufferedIOBase
    reasons: Mapping[int, Reason]
    last: int = -1
    taken: int = 0

    def take(self, number: int, row: Row) -> None:
        """Write a row that is not chosen."""
        if number > self.last and number in self.reasons:
            self.stream.write(_dump(as_it_stands(row) | {"tithe_reason": self.reasons[number]}) + b"\n")
            self.last, self.taken = number, self.taken + 1

    def take_rest(self, dataset: Dataset) -> None:
        """Read the data set for what was not taken yet: Parquet is copied by whole columns, without its rows."""
        for number, row in dataset.rows() if self.taken < len(self.reasons) else ():
            self.take(number, row)


def as_it_stands(row: Row) -> dict[str, Any]:
    """Return a record as it was read; a row that is none as its text."""
    whole = row.fault is None and isinstance(row.record, dict)
    return dict(row.record) if whole else {"tithe_raw": _raw(row)}


def files_of(dataset: Dataset) -> tuple[DataFile, ...]:
    origin = dataset.origin
    return origin.files if isinstance(origin, Folder) else (origin,) if isinstance(origin, DataFile) else ()


def _raw(row: Row) -> Any:
    return row.raw.decode("utf-8", "backslashreplace") if row.raw is not None else row.record


def plain(value: Any) -> Any:
    """JSON for what only Parquet and the hub can hold."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)


def _dump(record: Any) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, default=plain).encode()
    except UnicodeEncodeError:  # a lone surrogate: only its escape can be written
        return json.dumps(record, default=plain).encode()


def write_jsonl(job: Job, stream: io.BufferedIOBase, path: Path) -> int:
    count = 0
    if job.as_is and not job.reasons:
        for _, row in job.chosen():
            stream.write((_dump(row.record) if row.raw is None else row.raw) + b"\n")
            count += 1
        return count
    for record in job.out():
        stream.write(_dump(record) + b"\n")
        count += 1
    return count


def write_json(job: Job, stream: io.BufferedIOBase, path: Path) -> int:
    files = files_of(job.dataset)
    wrapper = files[0].wrapper if len(files) == 1 else None
    stream.write(b"[" if wrapper is None else b"{" + _dump(wrapper) + b": [")
    count = 0
    for record in job.out():
        stream.write((b",\n" if count else b"\n") + _dump(record))
        count += 1
    stream.write(b"\n]" + (b"" if wrapper is None else b"}") + b"\n")
    return count


def write_csv(job: Job, stream: io.BufferedIOBase, path: Path) -> int:
    files = files_of(job.dataset)
    own = files[0].delimiter if len(files) == 1 and files[0].container == "csv" else ","
    suffix = container_suffix(path)
    delimiter = "\t" if suffix == ".tsv" else "," if suffix == ".csv" and own == "\t" else own
    header = list(dict.fromkeys(name for record in job.out() for name in record)) or list(job.dataset.columns_seen)
    # Python's writer quotes a cell with a lone "\r" only where the line end has one too.
    text = io.StringIO(newline="")
    lines = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    lines.writerow(header)
    count = 0
    for record in job.out():
        count += 1
        lines.writerow([_cell(record.get(name)) for name in header])
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
        text.seek(0)
        text.truncate()
    stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
    return count


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=plain)
