"""Records of a task's file, checked: a field that is missing or of another kind is named with its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tithe.data.containers import Row
from tithe.data.sniff import sniff
from tithe.errors import DataError

TEXT, TEXTS, NUMBER, MANY = "a text", "a list of texts", "a whole number", "a list"


def records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where and what, of each record of a JSON lines, JSON, CSV or Parquet file, packed or not.

    Raises:
        DataError: it cannot be read, or a record is no object.
    """
    found = 0
    for row in sniff(path).rows():
        found += 1
        yield row.where, an_object(row)
    if not found:
        raise DataError(f"`{path}` has no records", hint="a task needs at least one")


def an_object(row: Row) -> Mapping[str, Any]:
    if row.fault is not None or not isinstance(row.record, Mapping):
        raise DataError(f"{row.where}: {row.fault or 'the record is no object with fields'}")
    return row.record


def field(record: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """One field of a record.

    Raises:
        DataError: it is not there, or of another kind.
    """
    if name not in record:
        raise DataError(f"{where}: the record has no field `{name}`", hint=f"it has: {', '.join(record) or 'nothing'}")
    value = record[name]
    fits = {
        TEXT: isinstance(value, str),
        TEXTS: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
        NUMBER: isinstance(value, int) and not isinstance(value, bool),
        MANY: isinstance(value, list),
    }
    if not fits[kind]:
        raise DataError(f"{where}: the field `{name}` is {str(value)[:60]!r}, and not {kind}")
    return value


def choice(record: Mapping[str, Any], name: str, choices: int, where: str) -> int:
    """A field that points at one of so many choices, counted from 0."""
    value: int = field(record, name, NUMBER, where)
    if not 0 <= value < choices:
        raise DataError(f"{where}: the field `{name}` is {value}, and there are {choices} choices, counted from 0")
    return value
