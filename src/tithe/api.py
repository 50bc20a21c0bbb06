"""The public functions of the core: `tithe.load`, `check`, `plan`, `bench`, `score`, `select`, `show` and `compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from tithe import run
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.in_memory import HeldRows, hold, is_name
from tithe.data.named_columns import read_columns
from tithe.engine.model_source import lent_model
from tithe.errors import SettingsError
from tithe.inspect.checking import CheckResult
from tithe.inspect.checking import check as look_over
from tithe.inspect.settings import CheckSettings
from tithe.lab.speed.forecast import BenchResult
from tithe.lab.speed.settings import BenchSettings
from tithe.lab.speed.speed import bench as measure
from tithe.look.compare_runs import DIFFERING
from tithe.look.compare_runs import compare as compare_rankings
from tithe.look.comparison_text import ComparedRuns
from tithe.look.find_record import Wanted
from tithe.look.record_text import ShownRecord
from tithe.look.show_record import show as show_record
from tithe.look.write_page import open_run
from tithe.report.notebook import choose_reporter
from tithe.run.source import named_dataset
from tithe.settings import ExampleSettings, ScoreSettings, SelectSettings, Settings, join_names, with_preset

S = TypeVar("S", bound=Settings)
Specs = str | Sequence[str] | None
# What a data set may be: what `load` gives, a path or hub id or several paths, a list of dicts, a `datasets.Dataset`,
# a DataFrame of pandas or polars, an Arrow table.
Source: TypeAlias = Any


def load(
    source: Source,
    *,
    format: str = "auto",
    turns: Literal["last", "all"] = "last",
    split: str | None = None,
    strict: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | Sequence[str] | str = (),
) -> Dataset:
    """Open a data set: files, a hub id, `starter`, or records from Python. Iterate over it for examples and bad rows.

    Args:
        source: a path, a hub id, a pattern, an address, several paths, a list of dicts, a `datasets.Dataset`, a
            DataFrame of pandas or polars, or an Arrow table.
        format: the records' shape, `auto` to detect it.
        turns: the `last` assistant turn of a record, or `all`.
        split: split of a hub data set.
        strict: raise at the first bad row.
        limit: read only so many records.

    Args:
        source: file, folder, hub id, or `starter`.
        format: shape of the records, or `auto`.
        turns: the `last` assistant turn of a dialogue, or `all` of them.
        split: split of a hub data set.
        strict: stop at the first bad row.
        limit: read only so many records.
        columns: which column is what, e.g. `{"prompt": "question", "response": "answer"}`.

    Raises:
        DataError: it does not exist or cannot be read.
        SettingsError: the source is of a kind that is not read.
    """
    held, own = source if is_name(source) else hold(source), read_columns(columns)
    name = data_name(held)
    return open_dataset(name, format=format, turns=turns, split=split, strict=strict, limit=limit, columns=own)


def check(data: Source, *, progress: bool = True, **settings: Any) -> CheckResult:
    """Look a data set over: bad rows, duplicates, truncation, contamination, lengths, languages.

    Args:
        data: what `load` gives, or what it takes.
        progress: show notes and progress.
        settings: as in `CheckSettings`: `model`, `max_length`, `near_duplicates`, `contamination`, limits such as
            `max_bad=0` and `max_duplicates="1%"`, `baseline`, ... A limit that is not kept is in `failures`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    data = hold_data(data)
    return look_over(make_settings(CheckSettings, data, None, settings), choose_reporter(progress))


def plan(
    data: Source, *, scorer: Specs = None, timed: bool = True, progress: bool = True, **settings: Any
) -> run.PlanResult:
    """Count what scoring would read, show one example as the model reads it, and say how long it would take.

    Args:
        data: what `load` gives, or what it takes.
        scorer: as of `score`.
        timed: read a few records, if the model's weights are here; without this only the tokenizer is needed.
        progress: show notes and progress.
        settings: as in `ScoreSettings`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    data = hold_data(data)
    with lent(settings) as given:
        made = make_settings(ScoreSettings, data, scorer, given)
        return run.plan(made, timed=timed, reporter=choose_reporter(progress))


def bench(data: Source, *, scorer: Specs = None, progress: bool = True, **settings: Any) -> BenchResult:
    """Measure how fast scoring would be here, on a sample of the data.

    Args:
        data: what `load` gives, or what it takes.
        progress: show notes and progress.
        scorer: as of `score`.
        settings: as in `BenchSettings`: `limit`, the records of the sample, `repeats`, and those of `score`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    data = hold_data(data)
    with lent(settings) as given:
        return measure(make_settings(BenchSettings, data, scorer, given), choose_reporter(progress))


def score(
    data: Source,
    *,
    scorer: Specs = None,
    run_dir: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> run.ScoreResult:
    """Score every example.

    Args:
        data: what `load` gives, or what it takes.
        scorer: one or more scorer specs, e.g. `"ifd,length"`; `ifd` where neither it nor a preset is given.
        run_dir: folder that keeps answers, so that a later call goes on from there; None keeps nothing.
        progress: show notes and progress, on stderr or in the notebook.
        settings: as in `ScoreSettings`: `model`, `preset`, `template`, `max_length`, `dtype`, `device`, ... The model
            may also be one in memory, with its `tokenizer`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    data = hold_data(data)
    with lent(settings) as given:
        made = make_settings(ScoreSettings, data, scorer, given)
        return run.score(made, folder=folder(run_dir), reporter=choose_reporter(progress))


def select(
    data: Source,
    *,
    scorer: Specs = None,
    keep: str | int | float = "5%",
    run_dir: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> run.SelectResult:
    """Score, and keep the best part.

    Args:
        data: what `load` gives, or what it takes.
        scorer: one or more scorer specs; the first one ranks unless `by` says otherwise.
        keep: rows (`500`), share (`"5%"`, `0.05`) or response tokens (`"200k-tokens"`).
        run_dir: folder that keeps answers, scores, dropped records and the run record; None keeps nothing.
        progress: show notes and progress, on stderr or in the notebook.
        settings: as in `SelectSettings`: those of `score`, `selector`, `drop`, `by`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    data = hold_data(data)
    with lent(settings) as given:
        made = make_settings(SelectSettings, data, scorer, {**given, "keep": keep})
        return run.select(made, folder=folder(run_dir), reporter=choose_reporter(progress))


def show(
    data: Source,
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
    data = hold_data(data)
    with lent(settings) as given:
        made = make_settings(ScoreSettings, data, scorer, given)
        return show_record(made, Wanted(row, id, turn), losses=losses)


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
    # A result also knows its data, which may be nowhere but in memory; `RUN:SCORER` is split where it is opened.
    opened = [one if isinstance(one, str | PathLike) else open_run(one) for one in runs]
    return compare_rankings(opened, scorers=[name.strip() for name in names], **how)


def make_settings(kind: type[S], data: Source, scorer: Specs, settings: dict[str, Any]) -> S:
    """Make settings as the command line does, from the data and keyword arguments.

    Args:
        kind: class of the settings.
        data: what `hold_data` gives.
        scorer: scorer specs.
        settings: keyword arguments.

    Raises:
        SettingsError: a setting is unknown, does not fit, or was fixed by `load`.
    """
    values = dict(settings)
    if isinstance(data, Dataset):
        opened = {name: getattr(data, name) for name in ("format", "turns", "split", "strict", "limit")}
        opened["columns"] = data.names.entries
        if kind is BenchSettings:  # there `limit` means the size of the sample
            opened["records"] = opened.pop("limit")
        for name in opened.keys() & values.keys():
            raise SettingsError(f"`{name}` is set when a data set is opened", hint=f"`tithe.load(..., {name}=...)`")
        for name in opened.keys() - kind.model_fields.keys():
            if opened.pop(name) != ExampleSettings.model_fields[name].default:
                raise SettingsError(f"`{name}` of the opened data set is not read here", hint="give the path instead")
        values |= {"dataset": data.source, **opened}
    else:
        values["dataset"] = data_name(data)
    if scorer is not None:
        values["scorer"] = scorer if isinstance(scorer, str) else tuple(scorer)
    return with_preset(kind, values) if issubclass(kind, ScoreSettings) else kind.of(values)


@contextmanager
def lent(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings with a name in place of a model in memory, which is lent to the run for this time.

    Raises:
        TitheError: the model cannot be read in place, or there is a tokenizer without it.
    """
    values = dict(settings)
    tokenizer, model = values.pop("tokenizer", None), values.get("model")
    if model is None or isinstance(model, str | PathLike):
        if tokenizer is not None:
            raise SettingsError(
                "`tokenizer` is read only beside a model in memory", hint="a model's folder has its own tokenizer"
            )
        yield values if model is None else {**values, "model": str(model)}
        return
    if values.get("warmup"):
        raise SettingsError(
            "`warmup` trains a model from its files, and this one is in memory", hint="leave it out, or give the folder"
        )
    with lent_model(model, tokenizer) as name:
        yield {**values, "model": name}


def hold_data(data: Source) -> Source:
    """Return the data so that settings can name it; records get a name while the caller keeps what is returned.

    Raises:
        SettingsError: it is of a kind that is not read.
    """
    return data if isinstance(data, Dataset | HeldRows) or is_name(data) else hold(data)


def data_name(data: Source) -> str:
    """Return the name by which settings refer to data; those of several files have commas between them."""
    if isinstance(data, HeldRows):
        return data.name
    if isinstance(data, list | tuple):
        return join_names(data)
    return named_dataset(str(data))


def folder(path: str | Path | None) -> Path | None:
    """Return the run folder as a path, or None.

    Raises:
        SettingsError: the name is empty, which would mean the current folder.
    """
    if path is not None and not str(path).strip():
        raise SettingsError("`run_dir` is empty", hint="an unset variable? leave it out, or name a folder")
    return None if path is None else Path(path)
