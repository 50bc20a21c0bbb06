"""Open a run folder that has finished: its record, its table, its data set, and its tokens if it kept them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from tithe.data.dataset import Dataset
from tithe.errors import DataError, SettingsError, StoreError, TitheError
from tithe.foreign import foreign, read_json
from tithe.run.folder import LOCK, RECORD, SCORES, TOKENS, has_finished
from tithe.run.source import DataSource
from tithe.run.table import COUNTS, FIXED
from tithe.settings import ScoreSettings, SelectSettings

if TYPE_CHECKING:
    import pyarrow as pa

DROPPED_COLUMN = "dropped"
NAMED = "`select` and `score` name their run folder at the end"


@dataclass(frozen=True)
class FinishedRun:
    """A finished `score` or `select`.

    Args:
        folder: the run folder.
        record: its `run.json`.
        table: its `scores.parquet`.
        held: its data, if this process holds it; None to open it by its name.
    """

    folder: Path
    record: Mapping[str, Any]
    table: pa.Table = field(repr=False)
    held: Dataset | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, held: Dataset | None = None) -> Self:
        """Read record and table.

        Args:
            folder: the run folder.
            held: the data, for a run from Python.

        Raises:
            StoreError: it is no run folder, a run is at work in it or has not finished, or it has no scores.
        """
        if not folder.is_dir():
            raise StoreError(f"no run folder `{folder}`", hint=NAMED)
        if is_locked(folder):
            raise StoreError(f"a run is at work in `{folder}`", hint="look again when it has finished")
        path = folder / RECORD
        if not path.is_file():
            raise StoreError(f"`{folder}` is no run folder: it has no `{RECORD}`", hint=NAMED)
        record = read_json(path, StoreError, "run it again")
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise StoreError(f"`{path}` is no record of `score` or `select`")
        if not has_finished(record):
            status = record["outcome"].get("status", "broken off")
            raise StoreError(
                f"the run in `{folder}` did not finish: {status}", hint="the same command goes on from there"
            )
        return cls(folder, record, read_table(folder / SCORES), held)

    @cached_property
    def examples(self) -> pa.Table:
        """The table without bad rows, which have no id."""
        return self.table.filter(self.table.column("id").is_valid())

    @property
    def scorers(self) -> list[str]:
        """Names of the score columns, the one that ranked first; without a scorer's further columns."""
        names = self.table.column_names
        numbers = [name for name in names[len(FIXED) : names.index(COUNTS[0])] if is_number(self.table, name)]
        found = [name for name in numbers if not any(is_further(name, other) for other in numbers)]
        by = (self.record.get("selection") or {}).get("by")
        return sorted(found, key=lambda name: name != by)

    @property
    def reading(self) -> Mapping[str, Any]:
        """The record of the last stage that read a model, or of the whole run, which has no stages without a pipeline.

        It has `model` and `template`; a run that read none has neither.
        """
        stages = self.record.get("stages") or [self.record]
        return next((stage for stage in reversed(stages) if stage.get("model")), {})

    @property
    def selects(self) -> bool:
        """Whether it chose."""
        return DROPPED_COLUMN in self.table.column_names

    @cached_property
    def source(self) -> DataSource:
        """The data set.

        Raises:
            TitheError: it cannot be read any more, or has changed.
        """
        settings = self.settings
        if self.held is None and self.record["dataset"].get("gone"):
            raise DataError(
                f"the data of this run, {settings.dataset}, is not on disk: it came from a pipe or from Python",
                hint="from Python: `tithe.look.look(result, ...)`; of a pipe: write it to a file, and run again",
            )
        try:
            source = DataSource.of(self.held) if self.held is not None else DataSource.open(settings)
        except TitheError as error:
            raise DataError(
                f"the data of this run cannot be read: {error}", hint="it must be where it was when the run read it"
            ) from error
        digest = self.record["dataset"].get("digest")
        if digest is not None and source.input_check.digest != digest:
            raise DataError(
                f"`{settings.dataset}` has changed since the run in `{self.folder}` read it", hint="run it again"
            )
        return source

    @cached_property
    def settings(self) -> ScoreSettings:
        """The settings of the run, with the data set where it lay.

        Raises:
            StoreError: they are of a version whose settings this one does not know.
        """
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in self.record["settings"].items()}
        model = SelectSettings if "keep" in given else ScoreSettings
        try:
            found = model.of(given)
        except SettingsError as error:
            made = self.record.get("versions", {}).get("tithe", "an unknown version")
            raise StoreError(
                f"the settings in `{self.folder / RECORD}`, of tithe {made}, are not known: {error}"
            ) from None
        path = self.record["dataset"].get("path")
        relative = not Path(found.dataset).is_absolute() and path is not None
        return found.model_copy(update={"dataset": path}) if relative else found

    @property
    def keeps_tokens(self) -> bool:
        """Whether the run kept the likelihoods of tokens."""
        return (self.folder / TOKENS).is_file()


def is_locked(folder: Path) -> bool:
    """Tell whether a process has the folder's lock; makes none."""
    path = folder / LOCK
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        with lock:
            return False
    except Timeout:
        return True


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file of a run.

    Raises:
        StoreError: it is missing or damaged.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise StoreError(f"`{path}` is missing", hint="run the same command again: stored answers are used")
    with foreign(StoreError, f"`{path}` cannot be read", "run the same command again: stored answers are used"):
        table = pq.read_table(path)
    if "id" not in table.column_names:
        raise StoreError(f"`{path}` has no column `id`")
    return table


def is_further(name: str, scorer: str) -> bool:
    """Tell whether a column is a further one of a scorer: `cpqs_probability`, but not `ifd_residual` or `ifd_2`."""
    rest = name.removeprefix(f"{scorer}_")
    return rest != name and rest != "residual" and not rest.isdigit()


def is_number(table: pa.Table, name: str) -> bool:
    import pyarrow.types as types

    return bool(types.is_floating(table.schema.field(name).type))
