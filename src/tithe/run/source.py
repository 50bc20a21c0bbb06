"""The data of a run: the data set, the pools beside it, and the check that its files do not change."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

from tithe.data.containers import DataFile
from tithe.data.dataset import SAMPLE_RECORDS, Dataset, Subset, open_dataset
from tithe.data.formats import Turns
from tithe.data.input_check import InputCheck
from tithe.data.lines import bounded_lines, reading, unpacked
from tithe.data.sniff import PACKED_SUFFIXES
from tithe.data.writers import files_of
from tithe.errors import DataError, TitheError
from tithe.foreign import demand_regular, foreign
from tithe.records import BadRow, Example
from tithe.scorers.base import POOL

STARTER = Path(__file__).parent.parent / "pocket" / "starter.jsonl"


class DataSettings(Protocol):
    """The settings that name the data set and say how to read it."""

    @property
    def dataset(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def split(self) -> str | None: ...
    @property
    def strict(self) -> bool: ...
    @property
    def limit(self) -> int | None: ...


@dataclass(frozen=True)
class FirstRecords:
    """The first records of a data set; a run is checked against them before it starts.

    Args:
        examples: examples among the first records, at least one if the data set has any.
        bad: number of bad rows before and among them.
        first_bad: the first bad row.
        whole: whether these are all records of the data set.
    """

    examples: Sequence[Example]
    bad: int
    first_bad: BadRow | None
    whole: bool


@dataclass(frozen=True)
class DataSource:
    """The data of a run, or the part that an earlier stage kept.

    Args:
        dataset: the records.
        input_check: notices changed files; made first, before anything is read.
        part_of: the whole source, if this is a part; None for a whole source.
    """

    dataset: Dataset
    input_check: InputCheck
    part_of: DataSource | None = None

    @classmethod
    def open(cls, settings: DataSettings) -> Self:
        """Find the data set that the settings name, and hash it.

        Raises:
            TitheError: it cannot be read.
        """
        s = settings
        name = named_dataset(s.dataset)
        found = open_dataset(
            name, format=s.format, turns=s.turns, split=s.split, strict=s.strict, limit=s.limit, columns=s.columns
        )
        return cls.of(found)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Hash an opened data set."""
        return cls(dataset, InputCheck(dataset))

    def part(self, places: Mapping[int, Collection[int]]) -> DataSource:
        """Return a source with these examples only.

        Args:
            places: row -> turns of that record.
        """
        return DataSource(Subset.of(self.whole.dataset, places), self.input_check, self.whole)

    @property
    def whole(self) -> DataSource:
        """The whole source: this one, unless it is a part."""
        return self if self.part_of is None else self.part_of

    @cached_property
    def first_records(self) -> FirstRecords:
        """The first records, parsed only once."""
        examples, bad, first_bad = list[Example](), 0, None
        # Bad rows may come first: go on until there is an example, however long it takes.
        for number, item in enumerate(self.dataset, 1):
            if isinstance(item, Example):
                examples.append(item)
            else:
                bad, first_bad = bad + 1, first_bad or item
            if number >= SAMPLE_RECORDS and examples:
                return FirstRecords(examples, bad, first_bad, whole=False)
        return FirstRecords(examples, bad, first_bad, whole=True)

    @cached_property
    def columns(self) -> list[str]:
        """Input columns besides the dialogue, found in the first examples of the whole source."""
        if self.part_of is not None:
            return self.part_of.columns
        return list(dict.fromkeys(name for example in self.first_records.examples for name in example.columns))

    @cached_property
    def in_memory(self) -> tuple[Sequence[Example], int]:
        """All examples without their other columns, and the number of records, bad rows included.

        For scorers and selectors that compare examples; everything else streams.
        """
        found, records = list[Example](), 0
        for item in self.dataset:
            records = item.row + 1
            if isinstance(item, Example):
                found.append(replace(item, columns={}))  # other columns may be large, and no scorer reads them
        return found, records

    def size(self) -> tuple[int | None, bool]:
        """Return the number of records, and whether it is exact; None if the files do not tell.

        Parses no records: counts lines, reads Parquet's metadata, or divides a file's size by its first records'.
        """
        if isinstance(self.dataset, Subset):
            return len(self.dataset.places), True
        found = [records_in(file, self.dataset) for file in files_of(self.dataset)]
        counts = [count for count, _ in found if count is not None]
        if not found or len(counts) < len(found):
            return None, False
        # An estimate of at least twice the limit is enough to know that the limit is reached.
        exact, total, limit = all(sure for _, sure in found), sum(counts), self.dataset.limit
        return (total, exact) if limit is None else (min(total, limit), exact or limit < total // 2)

    @property
    def examples(self) -> Sequence[Example]:
        """All examples; kept in memory once read."""
        return self.in_memory[0]


@dataclass
class Pools:
    """Other data sets that scorers read (worked examples, targets), each read once.

    Args:
        settings: settings of the run; pools are read like its data set.
        notes: notes to print about them.
        read: path -> examples, of the pools read so far.
    """

    settings: DataSettings
    notes: list[str] = field(default_factory=list)
    read: dict[str, Sequence[Example]] = field(default_factory=dict)

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        """Return the examples of a pool.

        Raises:
            TitheError: see `read_pool`.
        """
        if path not in self.read:
            self.read[path] = read_pool(path, self.settings, what, self.notes.append)
        return self.read[path]


def records_in(file: DataFile, dataset: Dataset) -> tuple[int | None, bool]:
    """Return the number of records in a file, and whether it is exact; None if it cannot be estimated."""
    if file.container == "parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(file.path).num_rows, True
    with reading(file.path):
        if file.container == "jsonl":
            with unpacked(file.path) as stream:
                return sum(not line.isspace() for line in bounded_lines(stream) if line is not None), True
        first = [row for row in islice(file.rows(), SAMPLE_RECORDS) if row.fault is None]
        if not first or file.path.suffix in PACKED_SUFFIXES:  # the size of a compressed file says little
            return None, False
        each = [len(json.dumps(row.record, ensure_ascii=False, default=str).encode(errors="replace")) for row in first]
        if file.container == "csv":  # unlike JSON, CSV repeats no column names, quotes or separators per record
            names = sum(len(name) + 6 for name in dataset.columns_seen)
            each = [max(1, length - names) for length in each]
        return round(file.path.stat().st_size / statistics.fmean(each)), False


def named_dataset(name: str) -> str:
    """Return the path of the bundled data set for `starter`, else the name; a file of that name takes precedence."""
    return str(STARTER) if name == "starter" and not Path(name).exists() else name


def read_pool(
    path: str, settings: DataSettings, what: str = "shot pool", say: Callable[[str], None] = lambda _: None
) -> Sequence[Example]:
    """Read a data set of worked examples or targets, with the run's settings.

    Its ids get a prefix, so that content in both data sets has two ids.

    Args:
        path: file, folder or hub id.
        settings: settings of the run.
        what: name of the pool in messages.
        say: prints a note on bad rows.

    Raises:
        TitheError: the pool cannot be opened, or none of its records can be read.
    """
    try:
        own = settings.columns
        dataset = open_dataset(
            named_dataset(path), format=settings.format, turns=settings.turns, columns=own, beside=True
        )
        items = list(dataset)
    except TitheError as error:
        raise type(error)(f"the {what} cannot be used: {error}", hint=error.hint) from error
    found = [replace(item, id=f"{POOL}{item.id}", columns={}) for item in items if isinstance(item, Example)]
    if not found:
        first = next(item for item in items if isinstance(item, BadRow))
        raise DataError(
            f"no record of the {what} `{path}` can be read: {len(items)} bad rows, "
            f"the first at {first.where}: {first.reason}",
            hint=f"`--format` names the shape of both, the data set and the {what}",
        )
    bad = [item for item in items if isinstance(item, BadRow)]
    if bad:
        say(f"note: bad rows of the {what} set aside: {len(bad):,}, the first at {bad[0].where}: {bad[0].reason}")
    return found


def read_kept(path: str) -> Mapping[str, Sequence[Any]]:
    """Read a table that an earlier run has written: column name -> values.

    Raises:
        DataError: there is no such file, or it is not Parquet.
    """
    import pyarrow.parquet as pq

    said, hint = f"the table `{path}` cannot be read", "a Parquet file of a run folder"
    if not Path(path).exists():
        raise DataError(f"{said}: there is no such file", hint=hint)
    with foreign(DataError, said, hint):
        demand_regular(Path(path), DataError, hint)
        with pq.ParquetFile(path) as file:
            return dict(file.read().to_pydict())
