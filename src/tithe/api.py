"""The public functions: `tithe.load`, `plan`, `bench`, `score`, `select`, and to look at them `show` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from tithe import run
from tithe.data.dataset import Dataset, open_dataset
from tithe.errors import SettingsError
from tithe.lab.speed.forecast import BenchResult
from tithe.lab.speed.settings import BenchSettings
from tithe.lab.speed.speed import bench as measure
from tithe.look.compare_runs import DIFFERING, ComparedRuns
from tithe.look.compare_runs import compare as compare_rankings
from tithe.look.find_record import Wanted
from tithe.look.show_record import show as show_record
from tithe.look.shown_record import ShownRecord
from tithe.run.source import named_dataset
from tithe.settings import ScoreSettings, SelectSettings, with_preset

S = TypeVar("S", bound=ScoreSettings)
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


def show(
    data: Dataset | str | Path,
    *,
    row: int | None = None,
    id: str | None = None,
    turn: int | None = None,
    scorer: Specs = None,
    losses: bool = True,
    **settings: Any,
) -> ShownRecord:
    """Show one record as the model reads it: its tokens, what is cut, its losses, and its scores.

    Args:
        data: what `load` gives, or what it takes.
        row: index of the record, from 0.
        id: id of the example, instead of a row.
        turn: index of the response among the record's messages; the last one that is read by default.
        scorer: as of `score`.
        losses: read losses and scores with the model's weights; False needs only its tokenizer.
        settings: as in `ScoreSettings`; without `model` only the text is shown.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    return show_record(make_settings(ScoreSettings, data, scorer, settings), Wanted(row, id, turn), losses=losses)


def compare(
    *runs: str | Path | run.ScoreResult | run.SelectResult,
    scorer: Specs = None,
    within: str | None = None,
    differ: int = DIFFERING,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> ComparedRuns:
    """Compare the rankings of runs: how far scorers, models or settings agree.

    Args:
        runs: run folders, `RUN:SCORER`, or results with a `run_dir`; one with several scorers, or several.
        scorer: compare only these scorers.
        within: a column by whose values the agreement is listed too.
        differ: how many of the examples that differ most are listed.
        output: also write a page there.
        overwrite: replace a page that is there.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    names = () if scorer is None else scorer.split(",") if isinstance(scorer, str) else scorer
    place = None if output is None else Path(output)
    how: dict[str, Any] = {"within": within, "differ": differ, "output": place, "overwrite": overwrite}
    return compare_rankings([*map(folder_of, runs)], scorers=[name.strip() for name in names], **how)


def folder_of(given: str | Path | run.ScoreResult | run.SelectResult) -> str | Path:
    """Return the run folder of a result, or the path that is given.

    Raises:
        SettingsError: the result was made without a run folder.
    """
    if isinstance(given, str | PathLike):
        return given
    scored = given.scored if isinstance(given, run.SelectResult) else given
    place = getattr(scored, "folder", None)
    if place is None:
        raise SettingsError(
            f"a comparison reads run folders, and this {type(given).__name__} has none",
            hint="give `run_dir` to the run",
        )
    return Path(place)


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
    return with_preset(kind, values)


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
