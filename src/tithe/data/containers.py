"""Rows of one file: JSON, JSONL, CSV or Parquet, as a stream."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from tithe.data.arrow_values import Plain
from tithe.data.jsonstream import JsonFault, JsonStream
from tithe.data.packed import MOST_LINE, bounded_lines, reading, skip_blank_lines, unpacked
from tithe.data.uniquejson import FieldTwiceError, loads
from tithe.errors import DataError
from tithe.foreign import foreign, words

Container: TypeAlias = Literal["jsonl", "json", "csv", "parquet"]

_BATCH = 512  # records of Parquet decoded at once
TOO_LONG = f"a record of more than {MOST_LINE >> 20} MiB"


class Row(NamedTuple):
    """One record as it stands in the file.

    Args:
        where: file and line, or file and record number.
        record: the parsed value; None where there is a fault.
        raw: the line's own bytes (JSONL), or those of a faulty record in a JSON list.
        fault: why it cannot be parsed.
        notes: what was left out of the record when it was parsed.
    """

    where: str
    record: Any
    raw: bytes | None = None
    fault: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFile:
    """A file whose kind is known.

    Args:
        path: where it is.
        container: how records are laid out in it.
        delimiter: between the cells of a CSV file.
        wrapper: name of the list in a JSON object that holds it, None for a bare list or records one after another.
    """

    path: Path
    container: Container
    delimiter: str = ","
    wrapper: str | None = None

    def rows(self) -> Iterator[Row]:
        """All records in order.

        Raises:
            DataError: the file as a whole is damaged or no longer there.
        """
        with reading(self.path):
            yield from _READERS[self.container](self)

    def digest(self) -> str:
        """blake2b of the file's bytes as they are on disk."""
        with reading(self.path), self.path.open("rb") as raw:
            return hashlib.file_digest(raw, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def parse_line(line: bytes, where: str) -> Row:
    """One line of JSONL."""
    try:
        return Row(where, loads(line.decode("utf-8")), line)
    except UnicodeDecodeError as error:
        return Row(where, None, line, f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return Row(f"{where}:{error.colno}", None, line, f"invalid JSON: {error.msg} at column {error.colno}")
    except FieldTwiceError as error:
        return Row(where, None, line, str(error))
    except Exception as error:  # a number of 4,300 digits, nesting without end, too much for the memory
        return Row(where, None, line, f"invalid JSON: {words(error)}")


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
            hint = (
                "one broken record makes the rest of the file unreadable; JSON lines, a record a line, cannot break so"
            )
            raise DataError(f"{where}: invalid JSON: {fault}", hint=hint) from None


class TextLines:
    """Lines for a `csv.reader`, which reads on behind one that is longer than `MOST_LINE`.

    Args:
        text: decoded, with its line ends as they are.
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
        raise csv.Error(TOO_LONG)


def csv_rows(text: IO[str], delimiter: str) -> Any:
    """A `csv.reader` whose cells and lines may be as long as a record may."""
    # Python's own limit of 131,072 characters is a module-wide setting; a record may well be larger.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE))
    return csv.reader(TextLines(text), delimiter=delimiter, strict=True)


def csv_lines(file: DataFile, stream: Any) -> Any:
    """A `csv.reader` of a file; bytes that are not UTF-8 come out as lone surrogates."""
    return csv_rows(io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline=""), file.delimiter)


def _csv(file: DataFile) -> Iterator[Row]:
    with unpacked(file.path) as stream:
        lines = csv_lines(file, stream)
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
            if not cells:
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
        plain = plain or Plain(batch.schema, f"`{file.path}`")
        with foreign(DataError, f"`{file.path}` holds a value that cannot be read"):  # not UTF-8, an impossible date
            records = batch.to_pylist()
        for each in records:
            number += 1
            record, notes = plain.record(each)
            yield Row(f"{file.path}: record {number}", record, notes=notes)


def parquet_batches(file: DataFile) -> Iterator[Any]:
    """Arrow record batches in order, from one row group after the other."""
    import pyarrow.parquet as pq

    with file.path.open("rb"):  # what the system says of the file itself is said by `reading`
        pass
    hint = "it may be an incomplete download or copy"
    with (
        foreign(DataError, f"`{file.path}` is not a readable Parquet file", hint),
        pq.ParquetFile(file.path) as parquet,
    ):
        yield from parquet.iter_batches(batch_size=_BATCH)


_READERS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
