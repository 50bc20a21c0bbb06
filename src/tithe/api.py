"""The public functions: `tithe.load`, `tithe.check`, `tithe.plan`, `tithe.bench`, `tithe.score`, `tithe.select`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from tithe import run
from tithe.data.dataset import Dataset, open_dataset
from tithe.errors import SettingsError
from tithe.inspect.checking import CheckResult
from tithe.inspect.checking import check as look_over
from tithe.inspect.settings import CheckSettings
from tithe.lab.speed.forecast import BenchResult
from tithe.lab.speed.settings import BenchSettings
from tithe.lab.speed.speed import bench as measure
from tithe.run.source import named_dataset
from tithe.settings import ExampleSettings, ScoreSettings, SelectSettings, with_preset

S = TypeVar("S", bound=ExampleSettings)
Specs = str | Sequence[str] | None


def load(
    source: str | Path,
    *,
    format: str = "auto",
    turns: Literal["last", "all"] = "last",
    split: str | None = None,
    strict: bool = False,
    limit: int | None = None,
) -> Dataset:
    """Open a data set: a file, a folder, a hub id, or `starter`. Iterate over it for `Example`s and `BadRow`s.

    Raises:
        DataError: it does not exist or cannot be read.
        SettingsError: the source is no path and no hub id.
    """
    demand_name(source)
    name = named_dataset(str(source))
    return open_dataset(name, format=format, turns=turns, split=split, strict=strict, limit=limit)


def check(data: Dataset | str | Path, **settings: Any) -> CheckResult:
    """Look a data set over: bad rows, duplicates, truncation, contamination, lengths, languages.

    Args:
        data: what `load` gives, or what it takes.
        settings: as in `CheckSettings`: `model`, `max_length`, `near_duplicates`, `contamination`, limits such as
            `max_bad=0` and `max_duplicates="1%"`, `baseline`, ... A limit that is not kept is in `failures`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    return look_over(make_settings(CheckSettings, data, None, settings))


def plan(data: Dataset | str | Path, *, scorer: Specs = None, **settings: Any) -> run.PlanResult:
    """Count what scoring would read; needs only the model's tokenizer. Settings as in `ScoreSettings`."""
    return run.plan(make_settings(ScoreSettings, data, scorer, settings))


def bench(data: Dataset | str | Path, *, scorer: Specs = None, **settings: Any) -> BenchResult:
    """Measure how fast scoring would be here, on a sample of the data.

    Args:
        data: what `load` gives, or what it takes.
        scorer: as of `score`.
        settings: as in `BenchSettings`: `limit`, the records of the sample, `repeats`, and those of `score`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    return measure(make_settings(BenchSettings, data, scorer, settings))


def score(
    data: Dataset | str | Path, *, scorer: Specs = None, run_dir: str | Path | None = None, **settings: Any
) -> run.ScoreResult:
    """Score every example.

    Args:
        data: what `load` gives, or what it takes.
        scorer: one or more scorer specs, e.g. `"ifd,length"`; `ifd` where neither it nor a preset is given.
        run_dir: folder that keeps answers, so that a later call goes on from there; None keeps nothing.
        settings: as in `ScoreSettings`: `model`, `preset`, `template`, `max_length`, `dtype`, `device`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    return run.score(make_settings(ScoreSettings, data, scorer, settings), folder=folder(run_dir))


def select(
    data: Dataset | str | Path,
    *,
    scorer: Specs = None,
    keep: str | int | float = "5%",
    run_dir: str | Path | None = None,
    **settings: Any,
) -> run.SelectResult:
    """Score, and keep the best part.

    Args:
        data: what `load` gives, or what it takes.
        scorer: one or more scorer specs; the first one ranks unless `by` says otherwise.
        keep: rows (`500`), share (`"5%"`, `0.05`) or response tokens (`"200k-tokens"`).
        run_dir: folder that keeps answers, scores, dropped records and the run record; None keeps nothing.
        settings: as in `SelectSettings`: those of `score`, `selector`, `drop`, `by`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    return run.select(make_settings(SelectSettings, data, scorer, {**settings, "keep": keep}), folder=folder(run_dir))


def make_settings(kind: type[S], data: Dataset | str | Path, scorer: Specs, settings: dict[str, Any]) -> S:
    """Make settings as the command line does, from the data and keyword arguments.

    Raises:
        SettingsError: a setting is unknown, does not fit, or was fixed by `load`.
    """
    values = dict(settings)
    if isinstance(data, Dataset):
        opened = {name: getattr(data, name) for name in ("format", "turns", "split", "strict", "limit")}
        if kind is BenchSettings:  # there `limit` means the size of the sample
            opened["records"] = opened.pop("limit")
        for name in opened.keys() & values.keys():
            raise SettingsError(f"`{name}` is set when a data set is opened", hint=f"`tithe.load(..., {name}=...)`")
        values |= {"dataset": data.source, **opened}
    else:
        demand_name(data, "a path, a hub id or what `tithe.load` gives")
        values["dataset"] = str(data)
    if scorer is not None:
        values["scorer"] = scorer if isinstance(scorer, str) else tuple(scorer)
    return with_preset(kind, values) if issubclass(kind, ScoreSettings) else kind.of(values)


def demand_name(data: object, accepted: str = "a path or a hub id") -> None:
    """Refuse records given in place of a path or a hub id.

    Raises:
        SettingsError: names the type, not the records, which may be many.
    """
    if not isinstance(data, str | PathLike):
        kind = type(data).__name__
        article = "an" if kind[:1].lower() in "aeiou" else "a"
        raise SettingsError(
            f"a data set is {accepted}, not {article} {kind}",
            hint="write the records to a JSON-lines file, and give its path",
        )


def folder(path: str | Path | None) -> Path | None:
    """Return the run folder as a path, or None.

    Raises:
        SettingsError: the name is empty, which would mean the current folder.
    """
    if path is not None and not str(path).strip():
        raise SettingsError("`run_dir` is empty", hint="an unset variable? leave it out, or name a folder")
    return None if path is None else Path(path)
