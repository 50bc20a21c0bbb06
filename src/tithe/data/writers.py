"""Write chosen records in a file's own layout (JSONL, JSON, CSV, Parquet), or in another shape."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tithe.data.containers import Container, DataFile, Row, parquet_batches
from tithe.data.dataset import Dataset, Folder
from tithe.data.formats import Dialogue, Shape, read_dialogue
from tithe.data.sniff import container_suffix
from tithe.data.turns import RecordError
from tithe.errors import OutputError
from tithe.records import Message


def reshape(record: Any, own: Shape, to: str, turns: Collection[int] | None, where: str) -> Iterator[dict[str, Any]]:
    """The record in shape `to`, every other column kept; nothing where it cannot be read.

    Args:
        record: as it stands in the file.
        own: its shape.
        to: `messages`, `alpaca` or `prompt-completion`.
        turns: the responses that were chosen, None for the last. `messages` keeps the dialogue up to the
            last of them in one record, where turns that are not to be learnt have weight 0; `prompt-completion`
            gives a record for each, `alpaca` puts what came before the last into `system` and `history`.
        where: for the error.

    Raises:
        OutputError: the shape has no place for what the record holds.
    """
    try:
        dialogue = read_dialogue(record, own)
    except RecordError:
        return
    chosen = sorted(turns) if turns is not None else list(dialogue.learnt[-1:])
    for turn in chosen if to == "prompt-completion" else chosen[-1:]:
        if to == "alpaca":
            yield _alpaca(dialogue, turn, where) | dict(dialogue.columns)
            continue
        said = [message.as_dict() for message in dialogue.messages[: turn + 1]]
        if to == "messages":  # a trainer must not learn what the record says is not to be learnt
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
        message = f"{where}: the `alpaca` shape has no place for tools, reasoning or turns that do not alternate"
        raise OutputError(message, hint="write `messages`")
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


def write_parquet(job: Job, stream: io.BufferedIOBase, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = _filtered(job, pa) if _keeps_schema(job) else _inferred(job, pa)
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


def _keeps_schema(job: Job) -> bool:
    return job.as_is and len(files_of(job.dataset)) == 1 and files_of(job.dataset)[0].container == "parquet"


def _filtered(job: Job, pa: Any) -> Iterator[Any]:
    """The input's own columns and types, and one more for the reasons."""
    number = 0
    limit = job.dataset.limit
    for batch in parquet_batches(files_of(job.dataset)[0]):
        rows = range(number, number + len(batch))
        number += len(batch)
        keep = [row for row in rows if row in job.rows and (limit is None or row < limit)]
        table = pa.Table.from_batches([batch]).take([row - rows.start for row in keep])
        if job.reasons:
            if "tithe_reason" in table.column_names:  # a dropped file, selected from again
                table = table.drop_columns("tithe_reason")
            table = table.append_column("tithe_reason", _reasons(job, keep, pa))
            extra = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"huggingface"}
            table = table.replace_schema_metadata(extra)  # `datasets` would miss the new column in its own list
        yield table


def _reasons(job: Job, rows: list[int], pa: Any) -> Any:
    several = any(isinstance(reason, list) for reason in job.reasons.values())
    values = [job.reasons.get(row) for row in rows]
    return pa.array(values, pa.list_(pa.string()) if several else pa.string())


def _inferred(job: Job, pa: Any) -> Iterator[Any]:
    """Types that hold all records: one look over them, then the writing."""
    schema = pa.schema([])
    for chunk in _chunks(job.out()):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(chunk).schema], promote_options="permissive")
    yield schema.empty_table()
    for chunk in _chunks(job.out()):
        yield pa.Table.from_pylist(chunk, schema)


def _chunks(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of records that all name the same columns, because Arrow takes the columns of the first."""
    while chunk := list(islice(records, _CHUNK)):
        names = dict.fromkeys(name for record in chunk for name in record)
        yield [{name: record.get(name) for name in names} for record in chunk]


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
