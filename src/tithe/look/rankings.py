"""Find the rankings that are compared: runs, each with one scorer or several, and which of them make a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tithe.errors import DataError, SettingsError, did_you_mean
from tithe.look.finished_run import DROPPED_COLUMN, FinishedRun
from tithe.records import FloatArray

# Settings that say what a run read or how much it kept, or that never change a score.
APART = frozenset({"dataset", "scorer", "workers", "batch_tokens", "per_token", "answers", "gate_check", "shape"})
DERIVED = (
    "template_hash",
    "template_date",
    "lead_ids",
)  # of the template's record: they follow from template and model


@dataclass(frozen=True, eq=False)
class Ranking:
    """The scores of one scorer in one run.

    Args:
        run: the run.
        scorer: name of the scorer.
        label: how tables call it.
        named: whether the scorer was named beside the run.
    """

    run: FinishedRun = field(repr=False)
    scorer: str
    label: str = ""
    named: bool = False

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the examples, in the order of the data set."""
        return [str(one) for one in self.run.examples.column("id").to_pylist()]

    @cached_property
    def values(self) -> FloatArray:
        """(examples,) scores, NaN for none."""
        column = self.run.examples.column(self.scorer)
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)

    @cached_property
    def kept(self) -> frozenset[str] | None:
        """Ids of what the run kept, if it ranked by this scorer; else None."""
        if not self.run.selects or (self.run.record.get("selection") or {}).get("by") != self.scorer:
            return None
        reasons = self.run.examples.column(DROPPED_COLUMN).to_pylist()
        return frozenset(id_ for id_, why in zip(self.ids, reasons, strict=True) if why is None)


def find_rankings(
    runs: Sequence[str | Path | FinishedRun], scorers: Sequence[str] = ()
) -> list[tuple[Ranking, Ranking]]:
    """Open the runs and return the pairs of rankings that are compared.

    The scorers of a single run are compared with each other. Of several runs the same scorers are, or all if they have
    none in common. Rankings given as `RUN:SCORER` are compared with all others.

    Args:
        runs: run folders, with a colon and the name of one scorer or without; or runs that are open.
        scorers: compare only these.

    Raises:
        SettingsError: nothing is left to compare, or a scorer is unknown.
        StoreError: a run cannot be read.
        DataError: a run has no scores.
    """
    if not runs:
        raise SettingsError("no run is given", hint="give a run with several scorers, or several runs")
    opened: dict[Path, FinishedRun] = {}
    found: list[Ranking] = []
    for given in runs:
        folder, named = (given.folder, None) if isinstance(given, FinishedRun) else split_name(given)
        place = folder.resolve()
        if place not in opened:
            opened[place] = with_scores(given if isinstance(given, FinishedRun) else FinishedRun.open(folder))
        for name in names_in(opened[place], named, scorers):
            if any(one.run is opened[place] and one.scorer == name for one in found):
                raise SettingsError(f"`{name}` of the run `{folder}` is given twice", hint="give each run once")
            found.append(Ranking(opened[place], name, named=named is not None))
    found = labelled(found)
    pairs = pairs_of(found)
    if not pairs:
        only = found[0] if found else None
        what = f"there is only `{only.scorer}` of `{only.run.folder}`" if only else "no run has such a scorer"
        raise SettingsError(f"nothing to compare: {what}", hint="give another run, or score with several scorers")
    return pairs


def split_name(given: str | Path) -> tuple[Path, str | None]:
    """Split `RUN:SCORER`; a folder of that whole name takes precedence."""
    text = str(given)
    folder, colon, name = text.rpartition(":")
    if not colon or not folder or Path(text).exists() or "/" in name:
        return Path(text), None
    return Path(folder), name


def with_scores(run: FinishedRun) -> FinishedRun:
    """Return a run that has scores.

    Raises:
        StoreError: it is of a version that is not known.
        DataError: it has no scores.
    """
    _ = run.settings  # of a version whose settings are unknown, the scores may mean something else
    table = run.examples
    if not any(table.column(name).null_count < len(table) for name in run.scorers):
        raise DataError(f"the run in `{run.folder}` has no scores to compare")
    return run


def names_in(run: FinishedRun, named: str | None, scorers: Sequence[str]) -> list[str]:
    """Return the scorers of a run that are compared.

    Raises:
        SettingsError: it has not the one that is named, or none of those wanted.
    """
    if named is not None:
        if named not in run.scorers:
            raise SettingsError(
                f"the run in `{run.folder}` has no scorer `{named}`", hint=did_you_mean(named, run.scorers)
            )
        return [named]
    if not scorers:
        table = run.examples
        return [name for name in run.scorers if table.column(name).null_count < len(table)]
    for name in scorers:
        if name not in run.scorers:
            raise SettingsError(
                f"the run in `{run.folder}` has no scorer `{name}`", hint=did_you_mean(name, run.scorers)
            )
    return list(dict.fromkeys(scorers))


def pairs_of(rankings: Sequence[Ranking]) -> list[tuple[Ranking, Ranking]]:
    """Return the pairs that say something: see `find_rankings`."""
    every = list(combinations(rankings, 2))
    if len({id(one.run) for one in rankings}) == 1 or any(one.named for one in rankings):
        return every
    across = [(a, b) for a, b in every if a.run is not b.run]
    same = [(a, b) for a, b in across if a.scorer == b.scorer]
    return same or across


def labelled(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Give every ranking a label: the scorer, the run, or both, whichever tells them apart."""
    runs = {id(one.run): one.run for one in rankings}
    names = {key: run.folder.resolve().name.removesuffix(".tithe") for key, run in runs.items()}
    if len(set(names.values())) < len(names):
        names = {key: str(run.folder) for key, run in runs.items()}
    scorers = Counter(one.scorer for one in rankings)
    found = []
    for one in rankings:
        both = f"{names[id(one.run)]}: {one.scorer}"
        label = one.scorer if len(runs) == 1 else names[id(one.run)] if len(scorers) == 1 else both
        found.append(replace(one, label=label))
    return found


def what_differs(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: name -> one value for each run."""
    facts = [facts_of_run(run) for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    found = {name: [text_of(each.get(name)) for each in facts] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def facts_of_run(run: FinishedRun) -> dict[str, Any]:
    """Return what a run's scores depend on: data, model, rendering, scorers, settings, version."""
    reading, record = run.reading, run.record
    model = reading.get("model") or {}
    settings = {name: value for name, value in record["settings"].items() if name not in APART}
    template = {name: value for name, value in (reading.get("template") or {}).items() if name not in DERIVED}
    scorers = {
        f"scorer {name}": value for name, value in (reading.get("scorers") or record.get("scorers") or {}).items()
    }
    return {
        "data set": record["dataset"].get("source"),
        "its content": record["dataset"].get("digest"),
        **settings,
        **template,  # as resolved: `auto` became a name, and the longest pass a number
        "model": model.get("name"),
        "its weights": model.get("fingerprint"),
        "dtype": model.get("dtype"),
        **scorers,
        "tithe": record.get("versions", {}).get("tithe"),
    }


def text_of(value: Any) -> str:
    """Return a setting as text; a scorer's settings as a list."""
    if isinstance(value, dict):
        own = {name: one for name, one in value.items() if name not in ("unit", "reads")}
        return ", ".join(f"{name}={one}" for name, one in own.items()) or "no settings"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
