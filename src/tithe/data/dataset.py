"""A data set on disk or on the hub, streamed as examples as often as needed, and subsets of one."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, cast, get_args

from tithe.data.containers import DataFile, Row
from tithe.data.feedback import refusal
from tithe.data.formats import Record, Shape, Turns, detect, examples, looks_like
from tithe.data.hub import open_hub
from tithe.data.ids import Occurrences
from tithe.data.lines import reading
from tithe.data.sniff import container_suffix, data_files, sniff
from tithe.data.turns import listing
from tithe.errors import DataError, SettingsError, did_you_mean
from tithe.records import BadRow, Example

LOOK = 100  # records by which the shape of a file is told
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Source(Protocol):
    """Where rows come from."""

    def rows(self) -> Iterator[Row]: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class Folder:
    """Several files read one after the other, by name.

    Args:
        files: those that are read.
        passed_over: what else is in the folder, in words.
    """

    files: tuple[DataFile, ...]
    passed_over: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        for file in self.files:
            yield from file.rows()

    def digest(self) -> str:
        """Hash of all names and contents."""
        state = hashlib.blake2b(digest_size=16)
        for file in self.files:
            state.update(f"{file.path.name}\n{file.digest()}\n".encode("utf-8", "surrogateescape"))
        return state.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Records of one shape; iterate as often as you like. Only the ids' hashes are held in memory.

    Args:
        source: as the user named it.
        format: the records' shape.
        turns: `last` assistant turn of a record, or `all` of them.
        strict: raise at the first bad row instead of yielding it.
        limit: how many records are read, None for all.
        columns_seen: field names among the first records, in order.
        origin: where the rows come from.
        split: part of a hub data set, as asked for.
    """

    source: str
    format: Shape
    turns: Turns
    strict: bool
    limit: int | None
    columns_seen: tuple[str, ...]
    origin: Source
    split: str | None = None

    def __iter__(self) -> Iterator[Example | BadRow]:
        """Every record in order: one example (under `all` one per turn), or a bad row with its reason."""
        seen = Occurrences()
        for number, row in self.rows():
            if row.fault is not None:
                yield self._bad(BadRow(number, row.where, row.fault))
                continue
            for item in examples(row.record, self.format, self.turns, number, row.where, seen, row.notes):
                yield self._bad(item) if isinstance(item, BadRow) else item

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(row, record as it stands) for every record, readable or not."""
        return enumerate(islice(self.origin.rows(), self.limit))

    def records(self) -> Iterator[tuple[int, Any]]:
        """(row, raw record) for every record that can be parsed."""
        return ((number, row.record) for number, row in self.rows() if row.fault is None)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the files as a whole: what a folder holds and is not read, columns named alike."""
        said = []
        if isinstance(self.origin, Folder) and self.origin.passed_over:
            read, there = len(self.origin.files), "; ".join(self.origin.passed_over)
            files = "1 file is" if read == 1 else f"{read:,} files are"
            said.append(f"note: of the folder `{self.source}` {files} read; passed over are {there}")
        alike = alike_names(self.columns_seen)
        if alike:
            groups = "; ".join(listing(names) for names in alike)
            said.append(f"note: names of columns that differ by case or blanks alone are different columns: {groups}")
        return said

    def digest(self) -> str:
        """Hash of the bytes that are read; another file never has it."""
        return self.origin.digest()

    def __repr__(self) -> str:
        limit = "" if self.limit is None else f", limit={self.limit}"
        return f"Dataset({self.source!r}, format={self.format!r}, turns={self.turns!r}{limit})"

    def _bad(self, row: BadRow) -> BadRow:
        if self.strict:
            raise DataError(f"{row.where}: {row.reason}", hint="without `--strict` such rows are set aside and listed")
        return row


def alike_names(columns: Sequence[str]) -> list[list[str]]:
    """Return groups of names that differ by case or blanks alone."""
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
) -> Dataset:
    """Find a data set and the shape of its records; reads no further than that takes.

    Args:
        source: file, folder of files, or hub id `owner/name`.
        format: `auto`, or the shape: alpaca, prompt-completion, messages, sharegpt.
        turns: score the `last` assistant turn of a record or `all`.
        split: part of a hub data set, `train` by default.
        strict: stop at the first bad row.
        limit: read only so many records from the start.

    Raises:
        DataError: nothing there, not readable, or no record of a known shape in it.
        SettingsError: a format, split or limit that cannot be.
        MissingExtraError: a hub id without the extra `tithe[hub]`.
    """
    if format != "auto" and format not in get_args(Shape):
        raise SettingsError(f"no format `{format}`", hint=did_you_mean(format, ["auto", *get_args(Shape)]))
    if turns not in get_args(Turns):
        raise SettingsError(f"no choice of turns `{turns}`", hint=did_you_mean(turns, get_args(Turns)))
    if limit is not None and limit < 1:
        raise SettingsError(f"a limit of {limit} records leaves nothing to read")
    name = str(source)
    if not name.strip():
        raise SettingsError("no data set is given: its name is empty", hint="an unset variable?")
    origin = _find(name, split)
    shape, columns = _look(name, origin, format)
    if isinstance(origin, Folder) and format == "auto":
        _agree(origin, shape)
    return Dataset(name, shape, turns, strict, limit, columns, origin, split)


def _find(name: str, split: str | None) -> Source:
    path = Path(name)
    with reading(path), suppress(RuntimeError):  # no such user
        path = path.expanduser()
    with reading(path):
        there = path.exists()
    if there and split is not None:
        raise SettingsError(f"`{name}` is on disk and has no splits", hint="leave out the split, or name its file")
    if there:
        return _folder(path) if path.is_dir() else sniff(path)
    if _HUB_ID.fullmatch(name) and not container_suffix(path) and not path.parent.is_dir():
        return open_hub(name, split or "train")
    raise DataError(f"no file or folder `{name}`", hint=_near(path))


def _near(path: Path) -> str:
    """Names like the missing one in its folder, or how far up there is a folder at all."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder `{folder}` either"
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return f"the folder `{folder}` cannot be listed"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    hub = "a hub id looks like `owner/name`"
    return f"in `{folder}` there is {listing(near)}" if near else f"nothing in `{folder}` has a name like that; {hub}"


def _folder(path: Path) -> Folder:
    files, passed = data_files(path)
    return Folder(tuple(sniff(entry) for entry in files), tuple(passed))


def _look(name: str, origin: Source, format: str) -> tuple[Shape, tuple[str, ...]]:
    """The shape and the columns by the first records; goes on until there is one that can be parsed."""
    records: list[Record] = []
    first: Row | None = None
    for number, row in enumerate(origin.rows()):
        first = first or row
        if row.fault is None and isinstance(row.record, dict):
            records.append(row.record)
        if number + 1 >= LOOK and records:
            break
    if first is None:
        raise DataError(f"`{name}` holds no records")
    columns = tuple(dict.fromkeys(column for record in records for column in record))
    if not records:
        why = first.fault or "the record is not an object"
        raise DataError(f"`{name}` holds no readable record; the first, {first.where}: {why}")
    shape = cast(Shape, format) if format != "auto" else detect(records)
    if shape is None:
        pairs = next(filter(None, map(refusal, records)), None)
        if pairs is not None:
            what, _, way = pairs.partition("; ")
            raise DataError(f"`{name}` holds {what}", hint=way)
        hint = "read are instruction + output, prompt + completion, messages, conversations; rename the columns"
        raise DataError(f"`{name}` has records of no known shape: there is {listing(columns)}", hint=hint)
    return shape, columns


def _agree(folder: Folder, shape: Shape) -> None:
    """All files of a folder hold the same shape; a folder of different data sets is a mistake."""
    for file in folder.files:
        records = [row.record for row in islice(file.rows(), LOOK) if isinstance(row.record, dict)]
        own = detect(records)
        if own not in (None, shape) and not any(shape in looks_like(record) for record in records):
            first = folder.files[0].path.name
            message = f"`{file.path.name}` holds `{own}` records, `{first}` before it `{shape}`"
            raise DataError(message, hint="keep one shape per folder, or name one file")


@dataclass(frozen=True, repr=False)
class Subset(Dataset):
    """Chosen examples of another data set, under the ids, rows and turns that they have there.

    As a data set is, it is read anew each time and not held in memory. Bad rows are no part of it.

    Args:
        whole: where they come from.
        places: row -> the turns of that record that belong to the subset.
    """

    whole: Dataset = field(kw_only=True)
    places: Mapping[int, Collection[int]] = field(kw_only=True)

    @classmethod
    def of(cls, whole: Dataset, places: Mapping[int, Collection[int]]) -> Self:
        """The examples of `whole` that stand at these places."""
        return cls(**{f.name: getattr(whole, f.name) for f in fields(Dataset)}, whole=whole, places=places)

    def __iter__(self) -> Iterator[Example | BadRow]:
        """The chosen examples in order; the whole is read for it, because an id counts what was before."""
        for item in self.whole:
            if isinstance(item, Example) and item.turn in self.places.get(item.row, ()):
                yield item

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(row, record as it stands) for every record of which an example was chosen."""
        return ((number, row) for number, row in self.whole.rows() if number in self.places)

    def __repr__(self) -> str:
        return f"Subset({self.whole!r}, {sum(map(len, self.places.values())):,} examples)"
