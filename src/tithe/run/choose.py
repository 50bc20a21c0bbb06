"""Choose among what was scored: filters, duplicates, contamination, the selector, and what is recorded of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.contamination.overlap import ContaminationResult, find
from tithe.data.dataset import Dataset
from tithe.data.ids import content_of
from tithe.data.writers import Reason
from tithe.errors import DataError, SettingsError, did_you_mean
from tithe.planner import without_numbers
from tithe.records import FloatArray, Scores, Selection
from tithe.report.reporter import Reporter
from tithe.run.method import Method, basics
from tithe.run.results import PipelineResult, ScoreResult, SelectResult, StageResult
from tithe.run.source import Source
from tithe.run.table import COMPUTED, COUNTS, FIXED, Table, joined, rank_correlation
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.filters import Filter, apply_filters, drop_duplicates, without
from tithe.selectors.rank import Top
from tithe.settings import SelectSettings
from tithe.stages import Stage

if TYPE_CHECKING:
    import pyarrow as pa


POOL = ("records", "examples", "bad_rows", "notes", "duplicates")  # counts of the whole input


@dataclass(frozen=True)
class Recipe:
    """How a selection is made of scores.

    Args:
        by: the scorer that ranks.
        selector: chooses among what the filters leave.
        budget: how much it may keep.
        filters: what is dropped before.
        drop_duplicates: drop later occurrences of the same prompt and response, too.
        contaminated: id -> reason, of examples that are dropped first of all.
    """

    by: str
    selector: Selector
    budget: Budget
    filters: Sequence[Filter] = ()
    drop_duplicates: bool = False
    contaminated: Mapping[str, str] = field(default_factory=dict)


def choose(result: ScoreResult, recipe: Recipe) -> SelectResult:
    """Filter and select; writes nothing."""
    scores = result.scores(recipe.by)
    reasons = {i: recipe.contaminated[id_] for i, id_ in enumerate(scores.ids) if id_ in recipe.contaminated}
    reasons = apply_filters(recipe.filters, scores.columns, scores.ids) | reasons
    if recipe.drop_duplicates:
        reasons |= duplicates(scores, reasons)
    rest = with_vectors(without(scores, reasons), recipe.selector, result)
    selection = recipe.selector.select(rest, recipe.budget)
    assert set(selection.kept) | set(selection.dropped) == set(scores.ids), "an example was lost"
    record = result.record | {"selection": selection_record(recipe, selection, scores, result)}
    return SelectResult(result, selection, scores, record, recipe.budget.note(rest, selection))


def contaminated(dataset: Dataset, settings: SelectSettings, reporter: Reporter) -> ContaminationResult:
    """What of the data set is in the evaluation files given; nothing where none is."""
    against = [Path(name).expanduser() for name in settings.drop_contaminated]
    if not against:
        return ContaminationResult({}, {})
    found = find(dataset, against, reporter=reporter)
    names = ", ".join(found.record["against"])
    reporter.say(f"{len(found.examples):,} examples share text with {names}: they are dropped")
    return found


def with_vectors(scores: Scores, selector: Selector, result: ScoreResult) -> Scores:
    """The scores with vectors of what may be kept, where the selector looks at likeness; zeros for the others."""
    spec = getattr(selector, "encoder", None)
    if spec is None or result.vectors is None:
        return scores
    there = np.flatnonzero(~np.isnan(scores.values))
    found = result.vectors([scores.ids[i] for i in there.tolist()], spec)
    vectors = np.zeros((len(scores), found.shape[1] if len(there) else 1), dtype=np.float32)
    if len(there):
        vectors[there] = found
    return replace(scores, vectors=vectors)


def duplicates(scores: Scores, gone: Mapping[int, str]) -> dict[int, str]:
    """Later occurrences of the same content, among those that nothing else drops: one of them always stays."""
    there = [i for i in range(len(scores)) if i not in gone and i not in scores.problems]
    again = drop_duplicates([content_of(scores.ids[i]) for i in there])
    return {there[place]: reason for place, reason in again.items()}


def repeated(ids: Sequence[str]) -> int:
    """Return how many of these examples say the same as another one of them that is counted already."""
    return len(ids) - len(set(map(content_of, ids)))


def ranking_scorer(method: Method, by: str | None) -> str:
    """Return the name of the scorer that ranks: the first, or another one that is scored."""
    names = list(method.scorers)
    if by is not None and by not in names:
        raise SettingsError(f"cannot rank by `{by}`, which is not scored", hint=did_you_mean(by, names))
    return by or names[0]


def chosen_filters(
    method: Method, source: Source, settings: SelectSettings, by: str, reporter: Reporter
) -> list[Filter]:
    """The filters given, or the ranking scorer's own; checked against the columns there will be."""
    default = method.scorers[by].default_drop
    texts = settings.drop if settings.drop is not None else (default,) if default else ()
    filters = [Filter.parse(text) for text in texts]
    known = [*method.score_columns, *COUNTS[:-1], *source.columns]
    for each in filters:
        each.check(known)
    if default and settings.drop and Filter.parse(default).column not in [each.column for each in filters]:
        reporter.say(f"note: these filters stand in the place of `{default}`, {by}'s own")
    return filters


def own_columns(method: Method, source: Source, selector: Selector, filters: Sequence[Filter]) -> list[str]:
    """Columns of the input that a filter or the selector reads."""
    computed = {*method.score_columns, *COUNTS[:-1]}
    wanted = [each.column for each in filters]
    made = [name for name in getattr(selector, "reads", ()) if name in COMPUTED]
    if isinstance(getattr(selector, "by", None), str):
        wanted.append(selector.by)  # type: ignore[attr-defined]
    for name in wanted:
        if name not in computed and name not in source.columns:
            hint = did_you_mean(name, [*source.columns, *computed])
            raise SettingsError(f"`{source.dataset.source}` has no column `{name}` beside the dialogue", hint=hint)
    return [*dict.fromkeys([*made, *(name for name in wanted if name not in computed)])]


def selection_record(recipe: Recipe, selection: Selection, scores: Scores, result: ScoreResult) -> dict[str, Any]:
    """Counts that add up, and how the kept differ from the pool."""
    kept = set(selection.kept)
    mask = np.array([id_ in kept for id_ in scores.ids], dtype=bool)
    bad = sum(result.record["counts"]["bad_rows"].values())
    return {
        "by": scores.by,
        "selector": selection.by,
        "budget": str(recipe.budget),
        "filters": [each.text for each in recipe.filters],
        "examples": len(scores),
        "kept": len(selection.kept),
        "kept_records": len(
            {row for id_, row in zip(result.grown.values("id"), result.grown.values("row"), strict=True) if id_ in kept}
        ),
        "dropped": counted(selection, {scores.ids[i] for i in scores.problems}),
        "bad_rows": bad,
        "duplicates": {"pool": repeated(scores.ids), "kept": repeated(selection.kept)},
        "quantiles": {
            name: {"pool": spread(column), "kept": spread(column[mask])}
            for name, column in shown_columns(scores, result).items()
        },
        "rank_correlation_with_length": rank_correlation(scores.values, scores.columns["response_tokens"]),
    }


def shown_columns(scores: Scores, result: ScoreResult) -> dict[str, FloatArray]:
    """What people are shown of a selection: the score that ranks, what its scorer says besides, and lengths."""
    besides = [name for name in result.grown.more if name.startswith(f"{scores.by}_")]
    names = [*besides, "response_tokens"]
    return {scores.by: scores.values, **{name: scores.columns[name] for name in names}}


def counted(selection: Selection, problems: set[str]) -> dict[str, int]:
    """How many were dropped why, most frequent first; problems that differ in their particulars alone are one."""
    whole: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for id_, reason in selection.dropped.items():
        short = without_numbers(reason) if id_ in problems else reason
        whole.setdefault(short, set()).add(reason)
        counts[short] += 1
    return {next(iter(whole[short])) if len(whole[short]) == 1 else short: n for short, n in counts.most_common()}


def nothing_kept(record: Mapping[str, Any]) -> DataError:
    chosen = record["selection"]
    why = ", ".join(f"`{reason}` ({n:,})" for reason, n in list(chosen["dropped"].items())[:3])
    return DataError(
        f"nothing of `{record['dataset']['source']}` is kept, all {chosen['examples']:,} examples are dropped: {why}",
        hint=way_out(list(chosen["dropped"])),
    )


def way_out(reasons: Sequence[str]) -> str:
    """What may be changed, by why examples are dropped."""
    ways = []
    if any("neighbour" in reason for reason in reasons):
        ways.append("`--exclude-similarity`, `--shot-pool` and `--encoder` decide which neighbours there are")
    if any(word in reason for reason in reasons for word in ("token", "length", "room")):
        ways.append("`--max-length`, `--template` and `--truncation` decide what fits")
    if any(sign in reason for reason in reasons for sign in ("<", ">", "=")):
        ways.append("`--drop` gives another filter, `--no-drop` none")
    return "; ".join(ways) or "`dropped.jsonl` in the run folder has every record with its reason"


def spread(values: np.ndarray[Any, Any]) -> list[float] | None:
    """Minimum, quartiles, maximum."""
    there = values[~np.isnan(values)]
    return np.quantile(there, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(there) else None


def with_reasons(chosen: SelectResult) -> Iterator[pa.Table]:
    """Parts of the score table with the column `dropped`: why an example or a bad row is not kept, null where it is."""
    import pyarrow as pa

    dropped = chosen.selection.dropped
    for part in chosen.scored.grown.parts():
        rows = zip(part["id"].to_pylist(), part["problem"].to_pylist(), strict=True)
        reasons = [problem if id_ is None else dropped.get(id_) for id_, problem in rows]
        yield part.append_column("dropped", pa.array(reasons, pa.string()))


def reasons_by_row(chosen: SelectResult) -> dict[int, Reason]:
    """Return why a record is dropped, for every record of which nothing was kept: one reason per turn."""
    table, kept = chosen.scored.grown, chosen.rows()
    reasons: dict[int, Reason] = {}
    for id_, row, problem in zip(table.values("id"), table.values("row"), table.values("problem"), strict=True):
        if row in kept:
            continue
        why = chosen.selection.dropped[id_] if id_ is not None else problem
        before = reasons.get(row)
        reasons[row] = why if before is None else [*([before] if isinstance(before, str) else before), why]
    return reasons


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
