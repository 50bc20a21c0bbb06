"""Read the items of any evaluation file: all text in each record."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.data.containers import TOO_LONG, csv_reader, parse_line
from tithe.data.jsonstream import JsonFault, JsonStream
from tithe.data.lines import bounded_lines, reading, unpacked
from tithe.data.prompts import PROMPTS
from tithe.data.sniff import container_suffix, sniff
from tithe.errors import DataError
from tithe.foreign import foreign

# Fields that name or classify an item and are no part of the question.
NAMING = frozenset({"id", "idx", "task_id", "question_id", "category", "type", "source", "split", "role", "from"})
_NAME = re.compile(r"[A-Za-z_][\w ]{0,30}")
ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an evaluation.

    Args:
        where: file and line.
        texts: all its texts, in order.
        question: the text of its question, if a field is known to hold it.
    """

    where: str
    texts: tuple[str, ...]
    question: str | None = None


def read_items(path: Path) -> Iterator[Item]:
    """Yield every record with text in it, from JSON lines, JSON, CSV or Parquet, compressed or not, or a zip archive.

    Raises:
        DataError: the file cannot be read, or a record of it cannot be parsed.
    """
    with reading(path):
        if not path.is_file():
            raise DataError(f"no evaluation file `{path}`")
        with path.open("rb") as raw:
            packed = raw.read(4) == ZIP
        if packed:
            yield from of_zip(path)
            return
    if container_suffix(path) in (".csv", ".tsv"):
        with reading(path), unpacked(path) as stream:
            yield from of_cells(stream, str(path), delimiter(path))
        return
    for row in sniff(path).rows():
        if row.fault is not None:
            raise DataError(f"{row.where}: {row.fault}", hint="an evaluation file must be readable to the end")
        yield from of_record(row.record, row.where)


def file_digest(path: Path) -> str:
    """Return the blake2b of a file's bytes on disk."""
    with reading(path), path.open("rb") as raw:
        return hashlib.file_digest(raw, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def delimiter(path: Path) -> str:
    return "\t" if container_suffix(path) == ".tsv" else ","


def of_zip(path: Path) -> Iterator[Item]:
    """Yield the items of an archive's files, by name; files of other types are skipped.

    Raises:
        DataError: it is damaged, or has no file of a supported type.
    """
    # `zipfile` raises different exceptions for damage, an unknown compression method, and a password.
    with (
        foreign(DataError, f"`{path}` is damaged or cannot be unpacked", hint="unpack it and give the files"),
        zipfile.ZipFile(path) as archive,
    ):
        names = sorted(name for name in archive.namelist() if container_suffix(Path(name)) in READ)
        if not names:
            raise DataError(f"`{path}` holds no file of {', '.join(READ)}")
        for name in names:
            with archive.open(name) as stream:
                yield from READ[container_suffix(Path(name))](stream, f"{path}:{name}", delimiter(Path(name)))


def of_lines(stream: Any, where: str, _: str) -> Iterator[Item]:
    for number, line in enumerate(bounded_lines(stream), 1):
        if line is None:
            raise DataError(f"{where}:{number}: {TOO_LONG}")
        if not line.isspace():
            row = parse_line(line.rstrip(b"\n"), f"{where}:{number}")
            if row.fault is not None:
                raise DataError(f"{row.where}: {row.fault}")
            yield from of_record(row.record, row.where)


def of_json(stream: Any, where: str, _: str) -> Iterator[Item]:
    with as_text(stream) as text:
        try:
            for line, record in JsonStream(text).records():
                yield from of_record(record, f"{where}:{line}")
        except JsonFault as fault:
            raise DataError(f"{where}:{fault.line}:{fault.column}: invalid JSON: {fault}") from None


def of_cells(stream: Any, where: str, between: str) -> Iterator[Item]:
    """Yield the rows of a CSV file. A first row that consists of names is a header; MMLU's files have none."""
    with as_text(stream) as text:
        lines = csv_reader(text, between)
        header: list[str] | None = None
        while True:
            at = f"{where}:{lines.line_num + 1}"
            try:
                cells = next(lines, None)
            except csv.Error as error:
                raise DataError(f"{at}: invalid CSV: {error}") from None
            if cells is None:
                return
            if header is None and cells:
                header = cells if is_header(cells) else []
                if header:
                    continue
            if header:
                yield from of_record(dict(zip(header, cells, strict=False)), at)
            elif any(cells):
                yield Item(at, tuple(cells), cells[0])


def is_header(cells: Sequence[str]) -> bool:
    """Tell whether all cells are distinct names, as in a header."""
    return len(cells) > 1 and all(map(_NAME.fullmatch, cells)) and len({*cells}) == len(cells)


@contextmanager
def as_text(stream: Any) -> Iterator[io.TextIOWrapper]:
    """Decode a stream; detach it afterwards, as it belongs to the caller, who closes it."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()


READ = {".jsonl": of_lines, ".ndjson": of_lines, ".json": of_json, ".csv": of_cells, ".tsv": of_cells}


def of_record(record: Any, where: str) -> Iterator[Item]:
    """Yield the record as an item, if it has any text."""
    texts = tuple(texts_of(record))
    if not texts:
        return
    names = PROMPTS if isinstance(record, Mapping) else ()
    question = next((record[name] for name in names if isinstance(record.get(name), str)), None)
    yield Item(where, texts, question)


def texts_of(value: Any) -> Iterator[str]:
    """Yield all strings in a value, however deep, in order."""
    if isinstance(value, str):
        if value and not value.isspace():
            yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in NAMING:
                yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)
