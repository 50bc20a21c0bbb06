"""Stream the rows of one file: JSON, JSONL, CSV or Parquet.

Arrow values are converted to what the same records would be in JSON lines: nulls in structs are dropped. All structs
of an Arrow column share one type, so a record has a null for every field that only other records use.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from tithe.data.jsonstream import JsonFault, JsonStream
from tithe.data.lines import MOST_LINE, bounded_lines, reading, skip_blank_lines, unpacked
from tithe.errors import DataError
from tithe.foreign import FieldTwiceError, describe_error, foreign, parse_json

Convert: TypeAlias = Callable[[Any], Any]
RENDERED_FIELDS = ("arguments", "parameters", "tools", "functions")  # templates render their content verbatim


class ArrowConverter:
    """A converter of records of one Arrow schema: it drops nulls in structs and makes maps objects.

    Args:
        schema: of the record batches.
        what: name of the source, for errors.

    Raises:
        DataError: a column, or a field of a struct, occurs twice.
    """

    def __init__(self, schema: Any, what: str) -> None:
        self._dropped: set[str] = set()
        _reject_duplicates(schema, what)
        made = {
            field.name: self._convert(field.type, field.name if field.name in RENDERED_FIELDS else "")
            for field in schema
        }
        self._columns = {name: convert for name, convert in made.items() if convert is not None}

    def record(self, record: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the converted record and notes about it; nulls of whole columns stay."""
        # Arrow cannot tell `null` from an absent field. Note it only where it can change the rendered prompt.
        self._dropped.clear()
        for name, convert in self._columns.items():
            if record[name] is not None:
                record[name] = convert(record[name])
        return record, tuple(map(null_note, sorted(self._dropped)))

    def _convert(self, type_: Any, rendered: str) -> Convert | None:
        """Return a function that converts a value of this Arrow type, None if none is needed."""
        import pyarrow.types as is_a

        if is_a.is_struct(type_):
            fields = [type_.field(i) for i in range(type_.num_fields)]
            inner = {one.name: self._convert(one.type, rendered or _rendered_name(one.name)) for one in fields}
            return lambda value: self._struct(value, inner, rendered)
        if is_a.is_map(type_):
            item = self._convert(type_.item_type, rendered) or (lambda one: one)
            return lambda value: _map_to_object([(key, None if one is None else item(one)) for key, one in value])
        if is_a.is_nested(type_) and hasattr(type_, "value_type"):
            each = self._convert(type_.value_type, rendered)
            return None if each is None else lambda value: [None if one is None else each(one) for one in value]
        return None

    def _struct(self, value: dict[str, Any], inner: dict[str, Convert | None], rendered: str) -> dict[str, Any]:
        out = {}
        for name, one in value.items():
            if one is not None:
                convert = inner[name]
                out[name] = one if convert is None else convert(one)
            elif rendered:
                self._dropped.add(rendered)
        return out


def null_note(name: str) -> str:
    """Return the note for nulls dropped from a field that templates render."""
    return f"null fields in `{name}` count as absent: Parquet and Arrow do not tell the two apart"


def without_nulls(value: Any) -> Any:
    """Drop nulls in the objects of a value from an Arrow table whose types are unknown."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _rendered_name(name: str) -> str:
    return name if name in RENDERED_FIELDS else ""


def _map_to_object(pairs: list[tuple[Any, Any]]) -> Any:
    """Return an Arrow map as an object, or as pairs if a key is not text or occurs twice."""
    made = dict(pairs)
    return made if len(made) == len(pairs) and all(isinstance(key, str) for key in made) else pairs


def _reject_duplicates(schema: Any, what: str, inside: str = "") -> None:
    import pyarrow.types as is_a

    names = [field.name for field in schema]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        kind = f"fields named `{twice[:40]}` in `{inside}`" if inside else f"columns named `{twice[:40]}`"
        raise DataError(f"{what} has two {kind}", hint="rename or remove one of them")
    for field in schema:
        type_ = field.type
        while is_a.is_nested(type_) and hasattr(type_, "value_type"):
            type_ = type_.value_type
        for part in [type_.item_type] if is_a.is_map(type_) else [type_]:
            if is_a.is_struct(part):
                inner = [part.field(i) for i in range(part.num_fields)]
                _reject_duplicates(inner, what, f"{inside}.{field.name}".lstrip("."))


Container: TypeAlias = Literal["jsonl", "json", "csv", "parquet"]

_BATCH = 512  # records of Parquet decoded at once; bounds memory for long responses
TOO_LONG = f"a record of more than {MOST_LINE >> 20} MiB"


class Row(NamedTuple):
    """One record as read from the file.

    Args:
        where: file and line, or file and record number.
        record: the parsed value; None if there is a fault.
        raw: the line's bytes (JSONL), or those of a faulty record in a JSON list.
        fault: why the record cannot be parsed.
        notes: notes on what was dropped in parsing.
    """

    where: str
    record: Any
    raw: bytes | None = None
    fault: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFile:
    """A file of a known kind.

    Args:
        path: of the file.
        container: the file format.
        delimiter: between the cells of a CSV file.
        wrapper: name of the list of records inside a JSON object; None for a bare list or consecutive records.
    """

    path: Path
    container: Container
    delimiter: str = ","
    wrapper: str | None = None

    def rows(self) -> Iterator[Row]:
        """Yield all records in order.

        Raises:
            DataError: the whole file is damaged, or it has disappeared.
        """
        with reading(self.path):
            yield from _READERS[self.container](self)

    def digest(self) -> str:
        """Return the blake2b hash of the file's bytes on disk."""
        with reading(self.path), self.path.open("rb") as raw:
            return hashlib.file_digest(raw, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def parse_line(line: bytes, where: str) -> Row:
    """Parse one line of JSONL; a fault becomes part of the row."""
    try:
        return Row(where, parse_json(line.decode("utf-8")), line)
    except UnicodeDecodeError as error:
        return Row(where, None, line, f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Row(f"{where}:{error.colno}", None, line, f"invalid JSON: {error.msg} at column {error.colno}")
    except FieldTwiceError as error:
        return Row(where, None, line, str(error))
    except Exception as error:  # a number of 4,300 digits, endless nesting, not enough memory
        return Row(where, None, line, f"invalid JSON: {describe_error(error)}")


def _jsonl(file: DataFile) -> Iterator[Row]:
    with unpacked(file.path) as stream:
        for number, line in enumerate(bounded_lines(stream), 1 + skip_blank_lines(stream)):
            if line is None:
                yield Row(f"{file.path}:{number}", None, fault=TOO_LONG)
                continue
            line = line.rstrip(b"\n")
            if line and not line.isspace():
                yield parse_line(line, f"{file.path}:{number}")


def _json(file: DataFile) -> Iterator[Row]:
    with unpacked(file.path) as stream:
        walk = JsonStream(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        try:
            for line, record in walk.records(file.wrapper):
                where = f"{file.path}:{line}"
                if walk.twice is None:
                    yield Row(where, record)
                else:
                    yield Row(where, None, walk.text.encode("utf-8", "backslashreplace"), walk.twice)
        except JsonFault as fault:
            where = f"{file.path}:{fault.line}:{fault.column}"
            hint = "one broken record makes the rest of the file unreadable, which cannot happen in JSON lines"
            raise DataError(f"{where}: invalid JSON: {fault}", hint=hint) from None


class TextLines:
    """Lines for a `csv.reader`; a line longer than `MOST_LINE` raises an error and reading can go on after it.

    Args:
        text: decoded text with its original line ends.
    """

    def __init__(self, text: IO[str]) -> None:
        self._text = text

    def __iter__(self) -> TextLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MOST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) <= MOST_LINE or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(MOST_LINE)
        raise csv.Error(TOO_LONG)  # `csv.reader` passes it on, and the next call continues with the next line


def csv_reader(text: IO[str], delimiter: str) -> Any:
    """Return a `csv.reader` whose cells may be as long as the longest record allowed."""
    # Python's limit of 131,072 characters per cell is a global setting, and long responses exceed it.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE))
    return csv.reader(TextLines(text), delimiter=delimiter, strict=True)


def csv_file_reader(file: DataFile, stream: Any) -> Any:
    """Return a `csv.reader` of a file; bytes that are not UTF-8 become lone surrogates."""
    return csv_reader(io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline=""), file.delimiter)


def _csv(file: DataFile) -> Iterator[Row]:
    with unpacked(file.path) as stream:
        lines = csv_file_reader(file, stream)
        header = _header(file, lines)
        while True:
            where = f"{file.path}:{lines.line_num + 1}"
            try:
                cells = next(lines, None)
            except csv.Error as error:
                yield Row(where, None, fault=f"invalid CSV: {error}")
                continue
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                yield Row(where, None, fault=f"{len(cells)} cells, the header has {len(header)}")
                continue
            yield Row(where, dict(zip(header, cells, strict=True)))


def _header(file: DataFile, lines: Any) -> list[str]:
    try:
        header: list[str] = next((cells for cells in lines if cells), [])
    except csv.Error as error:
        raise DataError(f"the header of `{file.path}` is not CSV: {error}") from None
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"`{file.path}` has two columns named `{twice[:40]}`")
    return header


def _parquet(file: DataFile) -> Iterator[Row]:
    number, plain = 0, None
    for batch in parquet_batches(file):
        plain = plain or ArrowConverter(batch.schema, f"`{file.path}`")
        with foreign(DataError, f"`{file.path}` holds a value that cannot be read"):  # not UTF-8, an impossible date
            records = batch.to_pylist()
        for each in records:
            number += 1
            record, notes = plain.record(each)
            yield Row(f"{file.path}: record {number}", record, notes=notes)


def parquet_batches(file: DataFile) -> Iterator[Any]:
    """Yield the Arrow record batches of a Parquet file in order."""
    import pyarrow.parquet as pq

    with file.path.open("rb"):  # errors of the file itself, such as a missing permission, are reported by `reading`
        pass
    hint = "it may be an incomplete download or copy"
    with (
        foreign(DataError, f"`{file.path}` is not a readable Parquet file", hint),
        pq.ParquetFile(file.path) as parquet,
    ):
        yield from parquet.iter_batches(batch_size=_BATCH)


_READERS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
