"""The values of a metric, one per item, and the two files of an evaluation: `evaluation.json` and `items.parquet`.

Item ids are the same for every model, so two models can be compared on the same items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tithe.errors import DataError, StoreError
from tithe.foreign import foreign, read_json
from tithe.records import FloatArray
from tithe.run.folder import remove_partial_files, write_json, write_table

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["right", "number"]
COLUMNS = ("metric", "item", "group", "cluster", "value", "problem")


@dataclass(frozen=True)
class Measured:
    """Values of one metric for one model, item by item.

    Args:
        metric: name of the metric: `holdout_nll`, `gsm8k`, `judge vicuna`, ...
        kind: `right` if each value is 0 or 1 (a McNemar test applies), `number` for any finite values.
        unit: unit of a value: `nats/token`, `right`, `points`, ...
        higher_is_better: whether higher values are better.
        items: item ids, each once.
        values: (items,) finite float64.
        groups: (items,) group of each item, such as its category; empty if there are no groups.
        clusters: (items,) what makes items depend on each other, such as a shared prompt; empty if items are
            independent.
        problems: item -> why it has no value; these items are not in `items`.
        about: what the values depend on, for the record: number of shots, seed, versions, file digests.
    """

    metric: str
    kind: Kind
    unit: str
    higher_is_better: bool
    items: tuple[str, ...]
    values: FloatArray
    groups: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.items) == len(self.values) == len(set(self.items)), "one value per item, each item once"
        assert not self.groups or len(self.groups) == len(self.items)
        assert not self.clusters or len(self.clusters) == len(self.items)
        assert np.isfinite(self.values).all(), "an item without a finite value belongs in `problems`, with a reason"
        assert self.kind == "number" or np.isin(self.values, (0.0, 1.0)).all()

    @property
    def mean(self) -> float:
        """Return the mean over the items that have a value; NaN if none has."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    def only(self, wanted: Sequence[str]) -> Measured:
        """Return the values of these items in this order; each must have a value."""
        place = {item: i for i, item in enumerate(self.items)}
        at = [place[item] for item in wanted]  # positions of the wanted items
        groups = tuple(self.groups[i] for i in at) if self.groups else ()
        clusters = tuple(self.clusters[i] for i in at) if self.clusters else ()
        return replace(self, items=tuple(wanted), values=self.values[at], groups=groups, clusters=clusters)


def as_table(measured: Sequence[Measured]) -> pa.Table:
    """Return a table of `metric, item, group, cluster, value, problem`: one row per item, with a value or a problem."""
    import pyarrow as pa

    kinds = dict.fromkeys(COLUMNS, pa.string()) | {"value": pa.float64()}
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for one in measured:
        none: Sequence[str | None] = [None] * len(one.items)
        there = zip(one.items, one.groups or none, one.clusters or none, one.values.tolist(), none, strict=True)
        missing = ((item, None, None, None, why) for item, why in one.problems.items())
        for cells in chain(there, missing):
            for name, cell in zip(rows, (one.metric, *cells), strict=True):
                rows[name].append(cell)
    return pa.table({name: pa.array(column, kinds[name]) for name, column in rows.items()})


def as_records(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return each metric without its items, for `evaluation.json`."""
    return [
        {
            "metric": one.metric,
            "kind": one.kind,
            "unit": one.unit,
            "higher_is_better": one.higher_is_better,
            "items": len(one.items),
            "problems": len(one.problems),
            "mean": None if not len(one.values) else one.mean,
            "about": dict(one.about),
        }
        for one in measured
    ]


def from_files(table: Path, records: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Read metrics back from the table of `as_table` and the records of `as_records`.

    Raises:
        DataError: the table cannot be read.
    """
    with foreign(DataError, f"cannot read the measured items `{table}`"):
        return read_measured(table, records)


def read_measured(table: Path, records: Sequence[Mapping[str, Any]]) -> list[Measured]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        rows = file.read().to_pylist()
    found = []
    for record in records:
        own = [row for row in rows if row["metric"] == record["metric"]]
        there = [row for row in own if row["problem"] is None]
        groups = tuple(row["group"] for row in there)
        clusters = tuple(row.get("cluster") for row in there)  # files of older versions have no such column
        found.append(
            Measured(
                metric=record["metric"],
                kind=record["kind"],
                unit=record["unit"],
                higher_is_better=record["higher_is_better"],
                items=tuple(row["item"] for row in there),
                values=np.array([row["value"] for row in there], dtype=np.float64),
                groups=groups if any(groups) else (),
                clusters=clusters if any(clusters) else (),
                problems={row["item"]: row["problem"] for row in own if row["problem"] is not None},
                about=record["about"],
            )
        )
    return found


RECORD, ITEMS = "evaluation.json", "items.parquet"
AGAIN = "name another folder with `-o`, or remove it"


@dataclass(frozen=True)
class StoredPiece:
    """Metrics that were measured together, as they are stored.

    Args:
        name: `holdout`, or a task's name.
        key: hash of everything the values depend on.
        depends: everything the values depend on.
        measured: the metrics.
        notes: what a reader of the numbers should know.
    """

    name: str
    key: str
    depends: Mapping[str, Any]
    measured: list[Measured]
    notes: list[str]


def write_pieces(
    folder: Path, base: Mapping[str, Any], kept: Iterable[StoredPiece], *, fewer: bool = False
) -> dict[str, Any]:
    """Write both files, the items first: if the run stops between the two, items that no record names are ignored.

    Args:
        folder: where the files go.
        base: the rest of the record.
        kept: all pieces to store.
        fewer: whether pieces are being removed; then the record is also written before the items, so that it never
            names items that are gone.
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


def record_of(base: Mapping[str, Any], kept: Sequence[StoredPiece]) -> dict[str, Any]:
    """Return the record of an evaluation: `base`, the metrics, and what each piece depends on."""
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


def read_pieces(folder: Path) -> list[StoredPiece]:
    """Return the pieces that an earlier run stored in a folder; none if it stored none.

    Raises:
        StoreError: the files are damaged or were not written by tithe.
    """
    if not (folder / RECORD).exists():
        return []
    record = read_json(folder / RECORD, StoreError, AGAIN)
    with foreign(StoreError, f"`{folder / RECORD}` cannot be read as an evaluation", AGAIN):
        # Without metrics there is no file of items: the run was stopped before its first one was measured.
        by = {one.metric: one for one in from_files(folder / ITEMS, record["metrics"])} if record["metrics"] else {}
        for one in record["metrics"]:
            if len(by[one["metric"]].items) != one["items"]:
                raise ValueError(f"`{ITEMS}` has {len(by[one['metric']].items)} items of `{one['metric']}`")
        return [
            StoredPiece(one["name"], one["key"], one["depends"], [by[name] for name in one["metrics"]], one["notes"])
            for one in record["pieces"]
        ]
