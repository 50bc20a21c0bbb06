"""`evaluation.json` and `items.parquet`: what was measured, and what it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.errors import StoreError
from tithe.foreign import foreign, read_json
from tithe.lab.evaluate.measured import Measured, as_records, as_table, from_files
from tithe.run.folder import remove_partial_files, write_json, write_table

RECORD, ITEMS = "evaluation.json", "items.parquet"
AGAIN = "name another folder with `-o`, or remove it"


@dataclass(frozen=True)
class Kept:
    """What was measured in one go.

    Args:
        name: `holdout`, or a task's name.
        key: of all that the values depend on.
        depends: the same in words.
        measured: its metrics.
        notes: what a person should know of them.
    """

    name: str
    key: str
    depends: Mapping[str, Any]
    measured: list[Measured]
    notes: list[str]


def write_kept(folder: Path, base: Mapping[str, Any], kept: Iterable[Kept], *, fewer: bool = False) -> dict[str, Any]:
    """Both files, the items first: what the record does not name does not count.

    Args:
        folder: where they go.
        base: the rest of the record.
        kept: all that is to be in them.
        fewer: something is to be gone, so the record is first.
    """
    parts = list(kept)
    record = record_of(base, parts)
    measured = [one for part in parts for one in part.measured]
    remove_partial_files(folder / ITEMS)
    remove_partial_files(folder / RECORD)
    if fewer:
        write_json(folder / RECORD, record)
    write_table(folder / ITEMS, as_table(measured))
    write_json(folder / RECORD, record)
    return record


def record_of(base: Mapping[str, Any], kept: Sequence[Kept]) -> dict[str, Any]:
    """Return the record of what was measured.

    Args:
        base: the rest of it.
        kept: all that is in the file of the items.
    """
    pieces = [
        {
            "name": part.name,
            "key": part.key,
            "metrics": [one.metric for one in part.measured],
            "notes": part.notes,
            "depends": part.depends,
        }
        for part in kept
    ]
    return {**base, "metrics": as_records([one for part in kept for one in part.measured]), "pieces": pieces}


def read_kept(folder: Path) -> list[Kept]:
    """What a folder holds of an earlier run; nothing where there was none.

    Raises:
        StoreError: its files are damaged or not ours.
    """
    if not (folder / RECORD).exists():
        return []
    record = read_json(folder / RECORD, StoreError, AGAIN)
    with foreign(StoreError, f"`{folder / RECORD}` is no evaluation that can be read", AGAIN):
        # A run that was stopped before its first metric may have left no items.
        by = {one.metric: one for one in from_files(folder / ITEMS, record["metrics"])} if record["metrics"] else {}
        for one in record["metrics"]:
            if len(by[one["metric"]].items) != one["items"]:
                raise ValueError(f"`{ITEMS}` has {len(by[one['metric']].items)} items of `{one['metric']}`")
        return [
            Kept(one["name"], one["key"], one["depends"], [by[name] for name in one["metrics"]], one["notes"])
            for one in record["pieces"]
        ]
