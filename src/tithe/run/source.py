"""The data of a run: what is read, held to be the same from the first reading to the last."""

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
from tithe.data.dataset import LOOK, Dataset, Subset, open_dataset
from tithe.data.formats import Turns
from tithe.data.input_check import InputCheck
from tithe.data.lines import bounded_lines, reading, unpacked
from tithe.data.sniff import PACKED
from tithe.data.writers import files_of
from tithe.errors import DataError, TitheError
from tithe.foreign import demand_regular, foreign
from tithe.records import BadRow, Example
from tithe.scorers.base import POOL

STARTER = Path(__file__).parent.parent / "pocket" / "starter.jsonl"


class DataSettings(Protocol):
    """The settings that say what is read, and how."""

    @property
    def dataset(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def split(self) -> str | None: ...
    @property
    def strict(self) -> bool: ...
    @property
    def limit(self) -> int | None: ...


@dataclass(frozen=True)
class Head:
    """The beginning of a data set: what is decided before a run is decided by it.

    Args:
        examples: those among the first records, at least one if there is one at all.
        bad: how many bad rows stand before and among them.
        first_bad: the first of these.
        whole: whether this is all of the data set.
    """

    examples: Sequence[Example]
    bad: int
    first_bad: BadRow | None
    whole: bool


@dataclass(frozen=True)
class Source:
    """The data of a run, or what an earlier stage left of it.

    Args:
        dataset: the records.
        input_check: of the files; opened with the source, before anything else is read.
        of: the whole of which this is a part; None for a whole.
    """

    dataset: Dataset
    input_check: InputCheck
    of: Source | None = None

    @classmethod
    def open(cls, settings: DataSettings) -> Self:
        """Find the data set that the settings name, and hash it.

        Raises:
            TitheError: it cannot be read.
        """
        s = settings
        name = named_dataset(s.dataset)
        found = open_dataset(name, format=s.format, turns=s.turns, split=s.split, strict=s.strict, limit=s.limit)
        return cls(found, InputCheck(found))

    def part(self, places: Mapping[int, Collection[int]]) -> Source:
        """Return these examples as a source of their own.

        Args:
            places: row -> the turns of that record that belong to it.
        """
        return Source(Subset.of(self.whole.dataset, places), self.input_check, self.whole)

    @property
    def whole(self) -> Source:
        """The source of which this is a part, or itself."""
        return self if self.of is None else self.of

    @cached_property
    def head(self) -> Head:
        """The first records, parsed once."""
        examples, bad, first_bad = list[Example](), 0, None
        for number, item in enumerate(self.dataset, 1):
            if isinstance(item, Example):
                examples.append(item)
            else:
                bad, first_bad = bad + 1, first_bad or item
            if number >= LOOK and examples:
                return Head(examples, bad, first_bad, whole=False)
        return Head(examples, bad, first_bad, whole=True)

    @cached_property
    def columns(self) -> list[str]:
        """The input's columns beside the dialogue, as the first examples of the whole have them."""
        if self.of is not None:
            return self.of.columns
        return list(dict.fromkeys(name for example in self.head.examples for name in example.columns))

    @cached_property
    def in_memory(self) -> tuple[Sequence[Example], int]:
        """All examples without their other columns, and the number of records, bad rows included.

        For scorers and selectors that look at the whole; everything else streams.
        """
        found, records = list[Example](), 0
        for item in self.dataset:
            records = item.row + 1
            if isinstance(item, Example):
                found.append(replace(item, columns={}))
        return found, records

    def size(self) -> tuple[int | None, bool]:
        """Return the number of records, and whether it is exact; None where the files do not tell it.

        No record is parsed for it: lines are counted, Parquet says it, a list or a table is measured by its first
        records.
        """
        if isinstance(self.dataset, Subset):
            return len(self.dataset.places), True
        found = [records_in(file, self.dataset) for file in files_of(self.dataset)]
        counts = [count for count, _ in found if count is not None]
        if not found or len(counts) < len(found):
            return None, False
        exact, total, limit = all(sure for _, sure in found), sum(counts), self.dataset.limit
        return (total, exact) if limit is None else (min(total, limit), exact or limit < total // 2)

    @property
    def examples(self) -> Sequence[Example]:
        """All examples, held in memory from the first time that they are asked for."""
        return self.in_memory[0]


@dataclass
class Pools:
    """Other data sets that scorers read: worked examples, targets. Each is read once.

    Args:
        settings: of the run: the pools are read as its data set is.
        notes: what is to be said of them.
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
    """Return how many records a file holds, and whether that is exact."""
    if file.container == "parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(file.path).num_rows, True
    with reading(file.path):
        if file.container == "jsonl":
            with unpacked(file.path) as stream:
                return sum(not line.isspace() for line in bounded_lines(stream) if line is not None), True
        first = [row for row in islice(file.rows(), LOOK) if row.fault is None]
        if not first or file.path.suffix in PACKED:
            return None, False
        each = [len(json.dumps(row.record, ensure_ascii=False, default=str).encode(errors="replace")) for row in first]
        if file.container == "csv":  # the names of its columns are not in every record, nor marks around values
            names = sum(len(name) + 6 for name in dataset.columns_seen)
            each = [max(1, length - names) for length in each]
        return round(file.path.stat().st_size / statistics.fmean(each)), False


def named_dataset(name: str) -> str:
    """Return the path of a bundled data set, or the name as it is; a file or folder of that name goes first."""
    return str(STARTER) if name == "starter" and not Path(name).exists() else name


def read_pool(
    path: str, settings: DataSettings, what: str = "shot pool", say: Callable[[str], None] = lambda _: None
) -> Sequence[Example]:
    """Read the data set that worked examples or targets are taken from, by the run's own settings.

    Their ids have a prefix: content that both data sets hold has two ids.

    Raises:
        TitheError: what `open_dataset` says, naming the pool; or none of its records can be read.
    """
    try:
        dataset = open_dataset(named_dataset(path), format=settings.format, turns=settings.turns)
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
    """Read a table that an earlier run has written, by column.

    Raises:
        DataError: there is none, or it is not Parquet.
    """
    import pyarrow.parquet as pq

    said, hint = f"the table `{path}` cannot be read", "a Parquet file of a run folder"
    if not Path(path).exists():
        raise DataError(f"{said}: there is no such file", hint=hint)
    with foreign(DataError, said, hint):
        demand_regular(Path(path), DataError, hint)
        with pq.ParquetFile(path) as file:
            return dict(file.read().to_pydict())
