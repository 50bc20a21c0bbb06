"""What comes of a pipeline: each stage's result, and one account of the whole input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tithe.config import SelectSettings
from tithe.data.files import Dataset
from tithe.records import Selection
from tithe.run.columns import Numbers, Reasons
from tithe.run.describe import versions
from tithe.run.results import ScoreResult, SelectResult
from tithe.run.select import Recipe, selection_record
from tithe.run.setup import Parts
from tithe.run.stages import Stage
from tithe.run.table import COUNTS, FIXED, Table, joined, take
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top

POOL = ("records", "examples", "bad_rows", "notes", "duplicates")  # counts of the whole input
OF_THE_RUN = ("settings", "versions", "dataset", "outcome")  # the same in every stage
OF_SCORING = ("scorers", "template", "model", "counts", "work", "trace", "engine")


@dataclass(frozen=True)
class StageResult:
    """One stage, done.

    Args:
        stage: what was asked for.
        column: its scores' name in the table of the whole; None where it used an earlier stage's.
        chosen: the selection of what came in.
        total: examples of the whole input.
    """

    stage: Stage
    column: str | None
    chosen: SelectResult
    total: int

    @property
    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        came, kept = len(self.chosen.scores), len(self.chosen)
        own = {"stage": self.stage.number, "text": self.stage.text, "column": self.column}
        own |= {"in": came, "kept": kept, "of_stage": kept / came, "of_all": kept / self.total}
        own |= {"note": self.chosen.note}
        rest = {key: value for key, value in self.chosen.record.items() if key not in OF_THE_RUN}
        return own | {key: value for key, value in rest.items() if key not in OF_SCORING or self.column}

    @property
    def sentence(self) -> str:
        """Counts in words."""
        came, kept = len(self.chosen.scores), len(self.chosen)
        dropped = [f"{n:,} {reason}" for reason, n in self.chosen.record["selection"]["dropped"].items()]
        shares = f"{share(kept, came)} of the stage, {share(kept, self.total)} of all"
        return f"{came:,} in, {kept:,} kept ({shares})" + (f"; dropped: {', '.join(dropped)}" if dropped else "")


@dataclass(frozen=True, repr=False)
class PipelineResult(SelectResult):
    """A selection made in stages; what `SelectResult` has is about the whole input."""

    stages: tuple[StageResult, ...] = ()

    def __str__(self) -> str:
        lines = [f"kept {len(self):,} of {len(self.scores):,} by {self.selection.by}"]
        lines += [f"{done.stage.label}: {done.sentence}" for done in self.stages]
        return "\n".join(lines + ([self.note] if self.note else []))


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%" if whole else "-"


def narrowed(chosen: SelectResult, dataset: Dataset, learned: dict[str, Any]) -> ScoreResult:
    """The scores of what a selection kept.

    Args:
        chosen: the selection.
        dataset: the data set with no more than that.
        learned: for the record, what is learned in choosing among them.
    """
    kept, before = set(chosen.selection.kept), chosen.scored.grown
    places = [i for i, id_ in enumerate(before.columns["id"]) if id_ in kept]
    table = Table(before.scorers)
    table.columns = {name: values.take(places) for name, values in before.columns.items()}
    table.reasons = {name: values.take(places) for name, values in before.reasons.items()}
    table.extra = {name: take(values, places) for name, values in before.extra.items()}
    nothing: dict[str, Any] = {"bad_rows": {}, "notes": {}}  # they were told of the whole
    record = chosen.scored.record | {"counts": chosen.scored.record["counts"] | nothing, "learned": learned}
    return replace(chosen.scored, dataset=dataset, record=record, grown=table, learned={})


def outcome(
    stages: Sequence[StageResult], settings: SelectSettings, whole: Parts, folder: Path | None
) -> PipelineResult:
    """One table, one selection and one record for the whole input."""
    first, last = stages[0].chosen, stages[-1].chosen
    leavers = {id_: done.stage for done in stages for id_ in done.chosen.dropped}
    dropped = {id_: f"{done.stage.label}: {why}" for done in stages for id_, why in done.chosen.dropped.items()}
    ids = [id_ for id_ in first.scored.grown.columns["id"] if id_ is not None]
    text = " -> ".join(done.stage.text for done in stages)
    selection = Selection(last.kept, {id_: dropped[id_] for id_ in ids if id_ in dropped}, by=text)
    assert set(selection.kept) | set(selection.dropped) == set(ids), "an example was lost"
    table = whole_table(stages, leavers)
    base = first.record
    record: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "versions": versions()}
    record["dataset"] = base["dataset"]
    record["counts"] = {name: base["counts"][name] for name in POOL}
    record["work"] = work_of([done.chosen.record["work"] for done in stages if done.column])
    scored = ScoreResult(whole.dataset, record, folder, table, first.scored.watch)
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


def whole_table(stages: Sequence[StageResult], leavers: dict[str, Stage]) -> Table:
    """A row per example and bad row of the input, a column per scoring stage; counts and NLLs are the first stage's.

    Args:
        stages: all of them.
        leavers: id -> the stage that dropped it, whence the later ones have no score of it.
    """
    first = stages[0].chosen.scored.grown
    ids = first.columns["id"]
    scoring = {done.column: done.chosen.scored.grown for done in stages if done.column}
    table = Table(list(scoring))
    for name in (*FIXED, *COUNTS):
        table.columns[name] = first.columns[name]
    for name, grown in scoring.items():
        if grown is first:
            table.columns[name], table.reasons[name] = first.columns[first.scorers[0]], first.reasons[first.scorers[0]]
            continue
        own = {id_: i for i, id_ in enumerate(grown.columns["id"])}
        values, reasons = grown.columns[grown.scorers[0]], grown.reasons[grown.scorers[0]]
        places = [own.get(id_) for id_ in ids]
        table.columns[name] = Numbers("float64", (None if i is None else values[i] for i in places))
        table.reasons[name] = Reasons(
            reasons[i] if i is not None else f"dropped in {leavers[id_].label}" if id_ is not None else bad
            for i, id_, bad in zip(places, ids, first.reasons[first.scorers[0]], strict=True)
        )
    table.columns["problem"] = Reasons(
        joined({name: table.reasons[name][i] for name in table.scorers}) for i in range(len(ids))
    )
    return table


def work_of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The stages' work, summed up."""
    work = {name: sum(part[name] for part in parts) for name in parts[0] if name != "tokens_per_second"}
    work["longest_wait_seconds"] = max(part["longest_wait_seconds"] for part in parts)
    seconds = work["reading_seconds"]
    return work | {"tokens_per_second": round(work["tokens_read"] / seconds, 1) if seconds else None}
