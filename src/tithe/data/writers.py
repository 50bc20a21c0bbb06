"""Write chosen records as JSONL, JSON, CSV or Parquet, in their own shape or another."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tithe.data.columns import UNNAMED, ColumnNames
from tithe.data.containers import Container, DataFile, Row, parquet_batches
from tithe.data.dataset import Dataset
from tithe.data.formats import Dialogue, Shape, read_dialogue
from tithe.data.row_sources import CopiedFiles, DataFiles
from tithe.data.sniff import container_suffix
from tithe.data.turns import RecordError
from tithe.errors import OutputError
from tithe.records import Message


def reshape(
    record: Any, own: Shape, to: str, turns: Collection[int] | None, where: str, names: ColumnNames = UNNAMED
) -> Iterator[dict[str, Any]]:
    """Yield the record in shape `to` with all its other columns; nothing if the record cannot be read.

    Args:
        record: as read from the file.
        own: its shape.
        to: `messages`, `alpaca` or `prompt-completion`.
        turns: the chosen responses, None for the last. `messages` keeps the dialogue up to the last of them in one
            record and gives weight 0 to turns not to be trained on. `prompt-completion` makes a record for each.
            `alpaca` puts what came before the last into `system` and `history`.
        where: file and line, for the error.
        names: the columns that the user has named.

    Raises:
        OutputError: the shape cannot hold what the record holds.
    """
    try:
        dialogue = read_dialogue(names.view(record, own), own)
    except RecordError:
        return
    chosen = sorted(turns) if turns is not None else list(dialogue.learnt[-1:])
    for turn in chosen if to == "prompt-completion" else chosen[-1:]:
        if to == "alpaca":
            yield _alpaca(dialogue, turn, where) | dict(dialogue.columns)
            continue
        said = [message.as_dict() for message in dialogue.messages[: turn + 1]]
        if to == "messages":  # so that a trainer does not train on turns that the record excludes
            for index, message in enumerate(said):
                message |= {"weight": 0} if message["role"] == "assistant" and index not in dialogue.learnt else {}
        body = {"messages": said} if to == "messages" else {"prompt": said[:-1], "completion": said[-1:]}
        tools = {"tools": list(dialogue.tools)} if dialogue.tools else {}
        yield body | tools | dict(dialogue.columns)


def _alpaca(dialogue: Dialogue, turn: int, where: str) -> dict[str, Any]:
    said = list(dialogue.messages[: turn + 1])
    system = said.pop(0).content if said[0].role == "system" else None
    asked, answered = said[0::2], said[1::2]
    plain = len(said) % 2 == 0 and all(_is(m, "user") for m in asked) and all(_is(m, "assistant") for m in answered)
    if not plain or dialogue.tools:
        message = f"{where}: the `alpaca` shape cannot hold tools, reasoning or turns that do not alternate"
        raise OutputError(message, hint="write `messages`")
    # Only the last turn has the record's own instruction and input; earlier ones were joined when read.
    whole = turn == len(dialogue.messages) - 1 and dialogue.instruction is not None
    out: dict[str, Any] = {
        "instruction": dialogue.instruction if whole else asked[-1].content,
        "input": (dialogue.input or "") if whole else "",
        "output": answered[-1].content,
    }
    if system is not None:
        out["system"] = system
    if len(said) > 2:
        out["history"] = [[a.content, b.content] for a, b in zip(asked[:-1], answered[:-1], strict=True)]
    return out


def _is(message: Message, role: str) -> bool:
    return message.role == role and message.plain


_CHUNK = 2048  # records encoded at once


def write_parquet(job: ExportJob, stream: io.BufferedIOBase, path: Path) -> int:
    """Write the records as Parquet, with the input's own types if it is one Parquet file; return their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = _filtered(job, pa) if _keeps_schema(job) else infer_tables(job.out, pa)
    count = 0
    try:
        first = next(tables)
        with pq.ParquetWriter(stream, first.schema) as writer:
            writer.write_table(first)
            count += len(first)
            for table in tables:
                writer.write_table(table)
                count += len(table)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        words = next(iter(str(error).splitlines()), "")
        raise OutputError(
            f"the records do not fit the columns of a Parquet file: {words}", hint="write .jsonl"
        ) from None
    return count


def _keeps_schema(job: ExportJob) -> bool:
    return job.as_is and len(files_of(job.dataset)) == 1 and files_of(job.dataset)[0].container == "parquet"


def _filtered(job: ExportJob, pa: Any) -> Iterator[Any]:
    """Yield tables of the chosen rows with the input's own columns and types, and a column for the reasons."""
    number = 0
    limit = job.dataset.limit
    for batch in parquet_batches(files_of(job.dataset)[0]):
        rows = range(number, number + len(batch))
        number += len(batch)
        keep = [row for row in rows if row in job.rows and (limit is None or row < limit)]
        table = pa.Table.from_batches([batch]).take([row - rows.start for row in keep])
        added = {REASON: _reasons(job, keep, pa)} if job.reasons else {}
        added |= _beside(job, keep, pa)
        for name, values in added.items():
            if name in table.column_names:  # the input is itself a file that a run has written
                table = table.drop_columns(name)
            table = table.append_column(name, values)
        if added:
            # `datasets` would look for the new column in its own metadata and fail; without that it infers the types.
            extra = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"huggingface"}
            table = table.replace_schema_metadata(extra)
        yield table


def _reasons(job: ExportJob, rows: list[int], pa: Any) -> Any:
    several = any(isinstance(reason, list) for reason in job.reasons.values())
    values = [job.reasons.get(row) for row in rows]
    return pa.array(values, pa.list_(pa.string()) if several else pa.string())


def _beside(job: ExportJob, rows: list[int], pa: Any) -> dict[str, Any]:
    """Return the further columns of these rows; with the same types for no rows at all."""
    if job.beside is None:
        return {}
    turns = job.rows if isinstance(job.rows, Mapping) else {}
    found = [job.beside(row, turns.get(row)) for row in rows]
    names = job.beside(-1)  # of a record that is not there
    return {
        name: pa.array([one[name] for one in found], _kind_beside(name, isinstance(empty, list), pa))
        for name, empty in names.items()
    }


def _kind_beside(name: str, several: bool, pa: Any) -> Any:
    kind = pa.int64() if name.startswith("tithe_rank_") else pa.float64()
    return pa.list_(kind) if several else kind


def infer_tables(out: Callable[[], Iterator[dict[str, Any]]], pa: Any) -> Iterator[Any]:
    """Yield Arrow tables under a schema that fits all records.

    Args:
        out: yields the records; called once for the schema and once for the tables.
        pa: the module `pyarrow`.
    """
    # "permissive" also unifies int with float and null with anything, as JSON does not separate them.
    schema = pa.schema([])
    for chunk in _chunks(out()):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(chunk).schema], promote_options="permissive")
    yield schema.empty_table()
    for chunk in _chunks(out()):
        yield pa.Table.from_pylist(chunk, schema)


def _chunks(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of records with equal columns, because Arrow takes the columns from the first record."""
    while chunk := list(islice(records, _CHUNK)):
        names = dict.fromkeys(name for record in chunk for name in record)
        yield [{name: record.get(name) for name in names} for record in chunk]


REASON = "tithe_reason"  # column for why a record was dropped
Beside: TypeAlias = Callable[..., Mapping[str, Any]]  # (row, turns) -> further columns of the record
OutShape: TypeAlias = Literal["same", "messages", "alpaca", "prompt-completion"]
Reason: TypeAlias = str | list[str]


@dataclass(frozen=True)
class ExportJob:
    """The settings of one export: which records are written, and how.

    Args:
        dataset: source of the records.
        rows: the chosen rows.
        shape: the shape to write.
        reasons: row -> why it was dropped.
        container: the file format to write.
        rewrite: whether to rewrite records that already have the shape.
        dropped: receives the other records; None leaves them out.
        beside: returns further columns of a record, such as its scores; None adds none.
        left_out: chosen rows left out because they are not objects, which the container cannot hold.
    """

    dataset: Dataset
    rows: Collection[int]
    shape: OutShape
    reasons: Mapping[int, Reason]
    container: Container
    rewrite: bool = False
    dropped: DroppedRecords | None = None
    beside: Beside | None = None
    left_out: set[int] = field(default_factory=set)

    @property
    def as_is(self) -> bool:
        own = self.shape == self.dataset.format and not self.rewrite and not self.dataset.names
        return self.shape == "same" or own

    def chosen(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.dataset.rows():
            if number in self.rows:
                yield number, row
            elif self.dropped is not None:
                self.dropped.take(number, row)

    def out(self) -> Iterator[dict[str, Any]]:
        """Yield the records in their final form; an unparsable row as its text, if the container can hold it."""
        for number, row in self.chosen():
            turns = self.rows[number] if isinstance(self.rows, Mapping) else None
            added: dict[str, Any] = {REASON: self.reasons[number]} if number in self.reasons else {}
            if self.beside is not None and self.as_is:
                added |= self.beside(number, turns)
            if row.fault is not None or not isinstance(row.record, dict):
                if self.container in ("json", "jsonl"):
                    yield record_or_raw(row) | added
                else:
                    self.left_out.add(number)
            elif self.as_is:
                yield row.record | added
            else:
                names = self.dataset.names
                others = list(reshape(row.record, self.dataset.format, self.shape, turns, row.where, names))
                # A bad row cannot be reshaped: write it as read.
                for record, own in zip(others or [row.record], self.reshaped_beside(number, turns), strict=False):
                    yield record | added | dict(own)

    def reshaped_beside(self, number: int, turns: Collection[int] | None) -> Iterator[Mapping[str, Any]]:
        """Yield the further columns of each record that `reshape` makes of one."""
        if self.beside is None:
            yield from repeat({})
        elif self.shape == "messages" or not turns:
            yield from repeat(self.beside(number, turns))
        else:  # one example each: every turn, or with `alpaca` the last
            chosen = sorted(turns)
            for turn in chosen if self.shape == "prompt-completion" else chosen[-1:]:
                yield self.beside(number, [turn], single=True)


@dataclass
class DroppedRecords:
    """A writer of dropped records as JSON lines, in the same pass that writes the chosen ones elsewhere.

    Args:
        stream: receives the lines.
        reasons: row -> why it was dropped.
        beside: returns further columns of a record, such as its scores; None adds none.
        last: the last row written; some containers go over the records twice.
        taken: number of rows written.
    """

    stream: io.BufferedIOBase
    reasons: Mapping[int, Reason]
    beside: Beside | None = None
    last: int = -1
    taken: int = 0

    def take(self, number: int, row: Row) -> None:
        """Write a row if it was dropped and has not been written yet."""
        if number > self.last and number in self.reasons:
            added = {REASON: self.reasons[number]} | dict(self.beside(number) if self.beside else {})
            self.stream.write(_dump(record_or_raw(row) | added) + b"\n")
            self.last, self.taken = number, self.taken + 1

    def take_rest(self, dataset: Dataset) -> None:
        """Write dropped rows that the export did not pass through `take`: Parquet is copied by columns, not rows."""
        for number, row in dataset.rows() if self.taken < len(self.reasons) else ():
            self.take(number, row)


def record_or_raw(row: Row) -> dict[str, Any]:
    """Return a record as read; a row without a record as its text in `tithe_raw`."""
    whole = row.fault is None and isinstance(row.record, dict)
    return dict(row.record) if whole else {"tithe_raw": _raw(row)}


def files_of(dataset: Dataset) -> tuple[DataFile, ...]:
    """Return the files on disk of a data set, copies included; none for one on the hub or in memory."""
    origin = dataset.origin
    if isinstance(origin, DataFiles | CopiedFiles):
        return origin.files
    return (origin,) if isinstance(origin, DataFile) else ()


def _raw(row: Row) -> Any:
    return row.raw.decode("utf-8", "backslashreplace") if row.raw is not None else row.record


def json_fallback(value: Any) -> Any:
    """Return a JSON value for types that only Parquet and the hub can hold."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)


def _dump(record: Any) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, default=json_fallback).encode()
    except UnicodeEncodeError:  # a lone surrogate can be written only as an escape
        return json.dumps(record, default=json_fallback).encode()


def write_jsonl(job: ExportJob, stream: io.BufferedIOBase, path: Path) -> int:
    """Write the records as JSON lines, unchanged lines byte for byte, and return their number."""
    count = 0
    # Copy the bytes: re-encoding would change spacing, escapes and number formats.
    if job.as_is and not job.reasons and job.beside is None:
        for _, row in job.chosen():
            stream.write((_dump(row.record) if row.raw is None else row.raw) + b"\n")
            count += 1
        return count
    for record in job.out():
        stream.write(_dump(record) + b"\n")
        count += 1
    return count


def write_json(job: ExportJob, stream: io.BufferedIOBase, path: Path) -> int:
    """Write the records as a JSON list, inside the input's wrapper if it has one; return their number."""
    files = files_of(job.dataset)
    wrapper = files[0].wrapper if len(files) == 1 else None
    stream.write(b"[" if wrapper is None else b"{" + _dump(wrapper) + b": [")
    count = 0
    for record in job.out():
        stream.write((b",\n" if count else b"\n") + _dump(record))
        count += 1
    stream.write(b"\n]" + (b"" if wrapper is None else b"}") + b"\n")
    return count


def write_csv(job: ExportJob, stream: io.BufferedIOBase, path: Path) -> int:
    """Write the records as CSV, with the columns of all records, and return their number."""
    files = files_of(job.dataset)
    own = files[0].delimiter if len(files) == 1 and files[0].container == "csv" else ","
    suffix = container_suffix(path)
    delimiter = "\t" if suffix == ".tsv" else "," if suffix == ".csv" and own == "\t" else own
    # One pass for the columns, a second one for the rows.
    header = list(dict.fromkeys(name for record in job.out() for name in record)) or list(job.dataset.columns_seen)
    # The line end must contain "\r": otherwise Python's writer does not quote a cell with a lone "\r".
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
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=json_fallback)
