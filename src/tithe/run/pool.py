"""What a run reads besides its data set: bundled ones by name, pools of examples, tables of earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tithe.config import ScoreSettings
from tithe.data.files import open_dataset
from tithe.errors import DataError, TitheError
from tithe.foreign import demand_regular, foreign
from tithe.records import BadRow, Example
from tithe.scorers.base import POOL

STARTER = Path(__file__).parent.parent / "pocket" / "starter.jsonl"


def named_dataset(name: str) -> str:
    """The path of a bundled data set, or the name as it is; a file or folder of that name goes first."""
    return str(STARTER) if name == "starter" and not Path(name).exists() else name


def read_pool(
    path: str, settings: ScoreSettings, what: str = "shot pool", say: Callable[[str], None] = lambda _: None
) -> Sequence[Example]:
    """The examples of a data set that worked examples or targets are taken from, read by the run's own settings.

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
    """A table that an earlier run has written, by column.

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
