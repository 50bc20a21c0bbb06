"""What comes of a pipeline: one table, one selection and one record of the whole input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tithe.data.files import Dataset
from tithe.records import Selection
from tithe.run.choose import Recipe, selection_record
from tithe.run.method import basics
from tithe.run.results import PipelineResult, ScoreResult, SelectResult, StageResult
from tithe.run.table import COUNTS, FIXED, Table, joined
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top
from tithe.settings import SelectSettings
from tithe.stages import Stage

POOL = ("records", "examples", "bad_rows", "notes", "duplicates")  # counts of the whole input


def narrowed(chosen: SelectResult, dataset: Dataset, learned: dict[str, Any]) -> ScoreResult:
    """Return the scores of what a selection kept.

    Args:
        chosen: the selection.
        dataset: the data set with no more than that.
        learned: for the record, what is learned in choosing among them.
    """
    kept, before = set(chosen.selection.kept), chosen.scored.grown
    table = before.take([i for i, id_ in enumerate(before.values("id")) if id_ in kept])
    nothing: dict[str, Any] = {"bad_rows": {}, "notes": {}}  # they were told of the whole
    record = chosen.scored.record | {"counts": chosen.scored.record["counts"] | nothing, "learned": learned}
    return replace(chosen.scored, dataset=dataset, record=record, grown=table, learned={})


def outcome(
    stages: Sequence[StageResult], settings: SelectSettings, dataset: Dataset, folder: Path | None
) -> PipelineResult:
    """Return one table, one selection and one record for the whole input."""
    first, last = stages[0].chosen, stages[-1].chosen
    leavers = {id_: done.stage for done in stages for id_ in done.chosen.dropped}
    dropped = {id_: f"{done.stage.label}: {why}" for done in stages for id_, why in done.chosen.dropped.items()}
    ids = [id_ for id_ in first.scored.grown.values("id") if id_ is not None]
    text = " -> ".join(done.stage.text for done in stages)
    selection = Selection(last.kept, {id_: dropped[id_] for id_ in ids if id_ in dropped}, by=text)
    assert set(selection.kept) | set(selection.dropped) == set(ids), "an example was lost"
    table = whole_table(stages, leavers)
    base = first.record
    record = basics(settings)
    record["dataset"] = base["dataset"]
    record["counts"] = {name: base["counts"][name] for name in POOL}
    record["work"] = work_of([done.chosen.record["work"] for done in stages if done.column])
    scored = ScoreResult(dataset, record, folder, table, first.scored.input_check)
    scores = table.scores(table.scorers[-1])
    recipe = Recipe(scores.by, Top(), replace(Budget.parse(1), text=text))
    record["selection"] = selection_record(recipe, selection, scores, scored) | {
        "filters": [text for done in stages for text in done.chosen.record["selection"]["filters"]],
        "dropped": {
            f"{done.stage.label}: {reason}": n
            for done in stages
            for reason, n in done.chosen.record["selection"]["dropped"].items()
        },
    }
    record["stages"] = [done.record for done in stages]
    notes = [f"{done.stage.label}: {done.chosen.note}" for done in stages if done.chosen.note]
    return PipelineResult(scored, selection, scores, record, "; ".join(notes) or None, tuple(stages))


def whole_table(stages: Sequence[StageResult], leavers: Mapping[str, Stage]) -> Table:
    """Return a row per example and bad row, a column per scoring stage; counts and NLLs are the first stage's.

    Args:
        stages: all of them.
        leavers: id -> the stage that dropped it, whence the later ones have no score of it.
    """
    first = stages[0].chosen.scored.grown
    ids = first.values("id")
    columns: dict[str, Any] = {name: first.values(name) for name in FIXED}
    reasons: dict[str, dict[int, str]] = {}
    bad = {i: first.reasons[first.scorers[0]][i] for i, id_ in enumerate(ids) if id_ is None}
    for done in stages:
        if done.column is None:
            continue
        grown = done.chosen.scored.grown
        own = {id_: i for i, id_ in enumerate(grown.values("id"))}
        values, said = grown.values(grown.scorers[0]), grown.reasons[grown.scorers[0]]
        places = [None if id_ is None else own.get(id_) for id_ in ids]
        columns[done.column] = [None if i is None else values[i] for i in places]
        reasons[done.column] = {
            row: why
            for row, (i, id_) in enumerate(zip(places, ids, strict=True))
            if (why := bad.get(row) if id_ is None else dropped_in(leavers[id_]) if i is None else said.get(i))
        }
    columns |= {name: first.values(name) for name in COUNTS[:-1]}
    columns["problem"] = [joined({name: said.get(i) for name, said in reasons.items()}) for i in range(len(ids))]
    return Table.made(columns, reasons)


def dropped_in(stage: Stage) -> str:
    """Return why a later stage has no score of an example."""
    return f"dropped in {stage.label}"


def work_of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the stages' work, summed up."""
    work = {name: sum(part[name] for part in parts) for name in parts[0] if name != "tokens_per_second"}
    work["longest_wait_seconds"] = max(part["longest_wait_seconds"] for part in parts)
    seconds = work["reading_seconds"]
    return work | {"tokens_per_second": round(work["tokens_read"] / seconds, 1) if seconds else None}
