"""Find examples of a data set: one by its row and turn or its id, or those that runs have scored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tithe.data.dataset import Dataset
from tithe.errors import DataError, SettingsError, TitheError
from tithe.look.finished_run import FinishedRun
from tithe.look.page_data import texts_of
from tithe.printable import counted
from tithe.records import BadRow, Example

ROW_HINT = "`--row 0` is the first record; `scores.parquet` and `dropped.jsonl` of a run have rows and ids"


@dataclass(frozen=True)
class Wanted:
    """Which example is wanted.

    Args:
        row: zero-based index of the record.
        id: id of the example.
        turn: index of the response among the record's messages; None for the last one that is read.
    """

    row: int | None = None
    id: str | None = None
    turn: int | None = None

    def check(self) -> None:
        """Refuse a wish that names no example, or two.

        Raises:
            SettingsError: neither or both of row and id are given, or a number is below 0.
        """
        if self.row is None and self.id is None:
            raise SettingsError("which record to show is not given: neither a row nor an id", hint=ROW_HINT)
        if self.row is not None and self.id is not None:
            raise SettingsError("a row and an id are given", hint="give one: each of them names the record")
        if self.id is not None and self.turn is not None:
            raise SettingsError("an id and a turn are given", hint="leave the turn out: an id names one turn")
        for name, value in (("row", self.row), ("turn", self.turn)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise SettingsError(f"a {name} is a whole number from 0 on, not `{value}`")


def find_record(dataset: Dataset, wanted: Wanted) -> tuple[Example, Sequence[int]]:
    """Return the example, and the turns of its record that are read.

    Reads the data set up to the record, since the ids of later copies of a text count the earlier ones.

    Raises:
        DataError: there is no such record or turn, or it cannot be read; says why.
    """
    record = by_id(dataset, wanted.id) if wanted.id is not None else by_row(dataset, wanted.row or 0)
    turns = [one.turn for one in record]
    if wanted.id is not None:
        return next(one for one in record if one.id == wanted.id), turns
    if wanted.turn is None:
        return record[-1], turns
    for one in record:
        if one.turn == wanted.turn:
            return one, turns
    there = ", ".join(map(str, turns))
    more = "" if dataset.turns == "all" else "; `--turns all` reads the earlier responses of a dialogue too"
    raise DataError(f"record {wanted.row} has no response at turn {wanted.turn}", hint=f"there is: {there}{more}")


def by_row(dataset: Dataset, row: int) -> list[Example]:
    """Return the examples of a record.

    Raises:
        DataError: there is none of that number, or it is a bad row.
    """
    found, bad, records = list[Example](), list[BadRow](), 0
    for item in dataset:
        if item.row > row:
            break
        records = item.row + 1
        if item.row == row:
            if isinstance(item, Example):
                found.append(item)
            else:
                bad.append(item)
    if found:
        return found
    if bad:
        raise DataError(f"record {row} is set aside as a bad row, at {bad[0].where}: {bad[0].reason}")
    last = f"the last is {records - 1:,}" if records else "it has none"
    raise DataError(f"no record {row:,} in `{dataset.source}`: it has {counted(records, 'record')}", hint=last)


def by_id(dataset: Dataset, id_: str) -> list[Example]:
    """Return the examples of the record with an example of this id.

    Raises:
        DataError: there is none.
    """
    record, row, there = list[Example](), -1, False
    for item in dataset:
        if item.row != row:
            if there:
                return record
            record, row = [], item.row
        if isinstance(item, Example):
            record.append(item)
            there = there or item.id == id_
    if there:
        return record
    hint = "" if dataset.turns == "all" else "; `--turns all` reads all responses of a dialogue"
    raise DataError(f"no example with the id `{id_}` in `{dataset.source}`", hint=f"ids are in `scores.parquet`{hint}")


def find_texts(runs: Sequence[FinishedRun], wanted: Collection[str]) -> tuple[dict[str, Example], list[str]]:
    """Return the examples of these ids, and a note for each run whose data set cannot be read any more."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, Example] = {}
    notes: list[str] = []
    for run in runs:
        table = run.examples
        left = pa.array(sorted(set(wanted) - found.keys()), pa.string())
        some = table.filter(pc.is_in(table.column("id"), value_set=left))
        if not len(some):
            continue
        try:
            found |= {one.id: one for one in texts_of(run, some)}
        except TitheError as error:  # the numbers are there: only their texts are not
            notes.append(f"note: no texts of the run in `{run.folder}`: {error}")
    return found, notes
