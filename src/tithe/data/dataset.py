"""Open a data set, wherever it is, and stream its examples, as often as needed; and subsets of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast, get_args

from tithe.data.columns import UNNAMED, ColumnNames, demand_text, guess_columns, unknown_column
from tithe.data.containers import DataFile, Row
from tithe.data.feedback import explain_preference_data
from tithe.data.formats import Record, Shape, Turns, detect_shape, matching_shapes
from tithe.data.ids import Occurrences
from tithe.data.locating import locate
from tithe.data.row_sources import CopiedFiles, DataFiles, RowSource
from tithe.data.sniff import sniff
from tithe.data.turns import quoted_names
from tithe.errors import DataError, SettingsError, did_you_mean
from tithe.records import BadRow, Example

SAMPLE_RECORDS = 100  # the first records of a file decide its shape


@dataclass(frozen=True)
class Dataset:
    """A data set of one shape that can be iterated any number of times; only the ids' hashes are held in memory.

    Args:
        source: its name as the user gave it, or that of data in memory.
        format: the records' shape.
        turns: `last` assistant turn of a record, or `all` of them.
        strict: raise at the first bad row instead of yielding it.
        limit: number of records to read, None for all.
        columns_seen: field names among the first records, in order.
        origin: the source of the rows.
        split: requested part of a hub data set.
        names: the columns that the user has named; records are read under these names, and written as they are.
    """

    source: str
    format: Shape
    turns: Turns
    strict: bool
    limit: int | None
    columns_seen: tuple[str, ...]
    origin: RowSource
    split: str | None = None
    names: ColumnNames = UNNAMED

    def __iter__(self) -> Iterator[Example | BadRow]:
        """Yield one example per record in order (with `turns="all"` one per turn), or a bad row with its reason."""
        seen = Occurrences()  # anew in every pass, so that ids are the same each time
        for number, row in self.rows():
            if row.fault is not None:
                yield self._bad(BadRow(number, row.where, row.fault))
                continue
            for item in self.names.read(row.record, self.format, self.turns, number, row.where, seen, row.notes):
                yield self._bad(item) if isinstance(item, BadRow) else item

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield (row number, row as read) for every record, readable or not."""
        return enumerate(islice(self.origin.rows(), self.limit))

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield (row number, raw record) for every record that can be parsed."""
        return ((number, row.record) for number, row in self.rows() if row.fault is None)

    @property
    def notes(self) -> list[str]:
        """Notes on the files as a whole: skipped files of a folder, and columns with nearly equal names."""
        said = []
        if isinstance(self.origin, DataFiles) and self.origin.passed_over:
            read, there = len(self.origin.files), "; ".join(self.origin.passed_over)
            files = "1 file is" if read == 1 else f"{read:,} files are"
            said.append(f"note: of `{self.source}` {files} read; skipped: {there}")
        alike = alike_names(self.columns_seen)
        if alike:
            groups = "; ".join(quoted_names(names) for names in alike)
            said.append(f"note: columns whose names differ only by case or blanks are different columns: {groups}")
        return said

    def digest(self) -> str:
        """Return a hash of the files' bytes, of the records in memory or, for the hub, of name, commit and split."""
        return self.origin.digest()

    def __repr__(self) -> str:
        limit = "" if self.limit is None else f", limit={self.limit}"
        named = f", columns={dict(self.names.given)!r}" if self.names else ""
        return f"Dataset({self.source!r}, format={self.format!r}, turns={self.turns!r}{limit}{named})"

    def _bad(self, row: BadRow) -> BadRow:
        if self.strict:
            raise DataError(f"{row.where}: {row.reason}", hint="without `--strict` such rows are set aside and listed")
        return row


def alike_names(columns: Sequence[str]) -> list[list[str]]:
    """Return groups of names that differ only by case or blanks."""
    groups: dict[str, list[str]] = {}
    for name in columns:
        groups.setdefault("".join(name.split()).lower(), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def open_dataset(
    source: str | Path,
    *,
    format: str = "auto",
    turns: Turns = "last",
    split: str | None = None,
    strict: bool = False,
    limit: int | None = None,
    columns: Sequence[str] = (),
    beside: bool = False,
) -> Dataset:
    """Find a data set and detect the shape of its records, reading only the first ones.

    Args:
        source: file, folder of files, hub id `owner/name`, or any other name that `locate` knows.
        format: `auto`, or the shape: alpaca, prompt-completion, messages, sharegpt.
        turns: score the `last` assistant turn of a record or `all`.
        split: part of a hub data set, `train` by default.
        strict: stop at the first bad row.
        limit: read only this many records from the start.
        columns: the user's names of columns, as `role=column`.
        beside: whether this is another data set than the one whose columns were named; it is read under these names
            if it has such columns.

    Raises:
        DataError: the source does not exist, is unreadable, or holds no record of a known shape.
        SettingsError: invalid format, turns, split or limit; or it has no such column.
        MissingExtraError: a hub id, but the extra `tithe[hub]` is not installed.
    """
    if format != "auto" and format not in get_args(Shape):
        raise SettingsError(f"unknown format `{format}`", hint=did_you_mean(format, ["auto", *get_args(Shape)]))
    if turns not in get_args(Turns):
        raise SettingsError(f"unknown turns `{turns}`", hint=did_you_mean(turns, get_args(Turns)))
    if limit is not None and limit < 1:
        raise SettingsError(f"a limit of {limit} records leaves nothing to read")
    name = str(source)
    if not name.strip():
        raise SettingsError("no data set is given: its name is empty", hint="an unset variable?")
    origin, names = locate(name, split), ColumnNames(tuple(columns))
    origin = names_in_files(origin, names)
    shape, seen, names = _detect_columns(name, origin, format, names, beside)
    if isinstance(origin, DataFiles) and format == "auto":
        _check_same_shape(origin, shape, names)
    return Dataset(name, shape, turns, strict, limit, seen, origin, split, names)


def names_in_files(origin: RowSource, names: ColumnNames) -> RowSource:
    """Detect the kind of each file again if the named columns may tell more: a CSV's delimiter, a JSON's wrapper."""
    own = frozenset(names.of_record.values())
    if not own:
        return origin
    if isinstance(origin, CopiedFiles):
        return replace(origin, copies=_sniff_again(origin.copies, own))
    return _sniff_again(origin, own) if isinstance(origin, DataFile | DataFiles) else origin


def _sniff_again(files: DataFile | DataFiles, own: frozenset[str]) -> DataFile | DataFiles:
    if isinstance(files, DataFile):
        return sniff(files.path, own)
    return replace(files, files=tuple(sniff(file.path, own) for file in files.files))


def _detect_columns(
    name: str, origin: RowSource, format: str, names: ColumnNames, beside: bool
) -> tuple[Shape, tuple[str, ...], ColumnNames]:
    """Return the shape, the columns of the first records, and the named ones; read on until a record can be parsed."""
    records: list[Record] = []
    first: Row | None = None
    for number, row in enumerate(origin.rows()):
        first = first or row
        if row.fault is None and isinstance(row.record, dict):
            records.append(row.record)
        # Read on if all of the sample was unreadable: one damaged beginning must not hide a readable file.
        if number + 1 >= SAMPLE_RECORDS and records:
            break
    if first is None:
        raise DataError(f"`{name}` holds no records")
    columns = tuple(dict.fromkeys(column for record in records for column in record))
    if not records:
        why = first.fault or "the record is not an object"
        raise DataError(f"`{name}` holds no readable record; the first, {first.where}: {why}")
    if beside and not set(names.of_record.values()) & set(columns):
        names = ColumnNames()
    if names:
        _check_names(name, origin, names, columns, records)
        shape = names.choose_shape(records, format)
    else:
        shape = cast(Shape, format) if format != "auto" else detect_shape(records)
    if shape is None:
        pairs = next(filter(None, map(explain_preference_data, records)), None)
        if pairs is not None:
            what, _, way = pairs.partition("; ")
            raise DataError(f"`{name}` holds {what}", hint=way)
        raise _no_known_shape(name, columns, records, names)
    return shape, columns, names


def _check_names(
    name: str, origin: RowSource, names: ColumnNames, columns: Sequence[str], records: Sequence[Record]
) -> None:
    """Refuse a named column that no record has, or that holds no text.

    Raises:
        SettingsError: names the column, and the columns that there are.
    """
    missing = set(names.of_record.values()) - set(columns)
    if missing:  # a column that few records have may be missing in the first ones
        for row in origin.rows():
            missing -= set(row.record) if isinstance(row.record, dict) else set()
            if not missing:
                break
    for column in names.of_record.values():
        if column in missing:
            raise unknown_column(column, name, columns)
    demand_text(names, name, records)


def _no_known_shape(name: str, columns: Sequence[str], records: Sequence[Record], names: ColumnNames) -> DataError:
    """Return the error for records that cannot be read, with a guess at their columns."""
    if names:
        lacking = [role for role in ("prompt", "response") if role not in names.given]
        return DataError(
            f"`{name}` has records of no known shape: there is {quoted_names(columns)}, and `columns` names no "
            f"{' and no '.join(lacking) or 'messages'}",
            hint=f"for example `--columns {guess_columns(records)}`",
        )
    return DataError(
        f"`{name}` has records of no known shape: there is {quoted_names(columns)}",
        hint=f"say which columns to read, for example `--columns {guess_columns(records)}`; known by themselves are "
        "instruction + output, prompt + completion, messages, conversations",
    )


def _check_same_shape(folder: DataFiles, shape: Shape, names: ColumnNames) -> None:
    """Refuse a folder whose files hold different shapes: these are different data sets."""
    for file in folder.files:
        records = [row.record for row in islice(file.rows(), SAMPLE_RECORDS) if isinstance(row.record, dict)]
        records = [names.view(record, shape) for record in records]
        own = detect_shape(records)
        # Some records match several shapes, so a file disagrees only if none of its records matches the shape.
        if own not in (None, shape) and not any(shape in matching_shapes(record) for record in records):
            first = folder.files[0].path.name
            message = f"`{file.path.name}` holds `{own}` records, `{first}` before it `{shape}`"
            raise DataError(message, hint="keep one shape per folder, or name one file")


@dataclass(frozen=True, repr=False)
class Subset(Dataset):
    """Chosen examples of a data set, with the ids, rows and turns that they have there.

    Like a data set it is read anew each time and not held in memory. It has no bad rows.

    Args:
        whole: the data set.
        places: row -> the turns of that record that belong to the subset.
    """

    whole: Dataset = field(kw_only=True)
    places: Mapping[int, Collection[int]] = field(kw_only=True)

    @classmethod
    def of(cls, whole: Dataset, places: Mapping[int, Collection[int]]) -> Self:
        """Return the examples of `whole` at these rows and turns."""
        return cls(**{f.name: getattr(whole, f.name) for f in fields(Dataset)}, whole=whole, places=places)

    def __iter__(self) -> Iterator[Example | BadRow]:
        """Yield the chosen examples in order; this reads the whole data set, since ids count earlier repetitions."""
        for item in self.whole:
            if isinstance(item, Example) and item.turn in self.places.get(item.row, ()):
                yield item

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield (row number, row as read) for every record with a chosen example."""
        return ((number, row) for number, row in self.whole.rows() if number in self.places)

    def __repr__(self) -> str:
        return f"Subset({self.whole!r}, {sum(map(len, self.places.values())):,} examples)"
