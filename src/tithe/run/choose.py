"""Choose among scored examples: filters, duplicates, contamination, the selector, and the record of the choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe import plugins
from tithe.contamination.overlap import ContaminationResult, find
from tithe.data.dataset import Dataset
from tithe.data.ids import strip_occurrence
from tithe.duplicates.near import NearDuplicates
from tithe.errors import SettingsError, did_you_mean
from tithe.planner import without_details
from tithe.records import FloatArray, Scores, Selection, without_number
from tithe.report.reporter import Reporter
from tithe.run.method import Method, basic_record, residual_name
from tithe.run.results import PipelineResult, ScoreResult, SelectResult, StageResult
from tithe.run.source import DataSource
from tithe.run.table import COMPUTED, COUNTS, FIXED, NLLS, ScoreTable, join_reasons, rank_correlation
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.filters import Filter, apply_filters, drop_duplicates, without
from tithe.selectors.mean_rank import FORM, MeanRank, is_mean_rank
from tithe.selectors.rank import Ranked, Top
from tithe.settings import SelectSettings
from tithe.stages import Stage

if TYPE_CHECKING:
    import pyarrow as pa


POOL = ("records", "examples", "bad_rows", "notes", "duplicates")  # counts of the whole input


@dataclass(frozen=True)
class SelectionRules:
    """The rules by which a selection is made from scores.

    Args:
        by: the score that ranks.
        selector: chooses among the examples that the filters leave.
        budget: how much the selector may keep.
        filters: drop examples before the selector sees them.
        drop_duplicates: also drop later examples with the same prompt and response.
        contaminated: id -> reason, for examples that are dropped first of all.
        near: also drop exact duplicates, and then all near-duplicates but the best.
        ranks: the scores whose ranks make up `by`; None if a scorer ranks by itself.
    """

    by: str
    selector: Selector
    budget: Budget
    filters: Sequence[Filter] = ()
    drop_duplicates: bool = False
    contaminated: Mapping[str, str] = field(default_factory=dict)
    near: NearDuplicates | None = None
    ranks: MeanRank | None = None


def choose(result: ScoreResult, rules: SelectionRules) -> SelectResult:
    """Filter and select; write nothing."""
    if rules.ranks is not None and rules.by not in result.score_table.scorers:
        result = replace(result, score_table=add_mean_rank(result.score_table, rules, rules.ranks))
    scores = result.scores(rules.by)
    reasons = dropped_before(scores, rules)
    if rules.near is not None:  # the best of each group stays, so their scores must be there
        reasons |= find_near_duplicates(without(scores, reasons), rules.near, rules.selector, result)
    rest = add_vectors(without(scores, reasons), rules.selector, result)
    selection = rules.selector.select(rest, rules.budget)
    assert set(selection.kept) | set(selection.dropped) == set(scores.ids), "an example was lost"
    record = result.record | {"selection": selection_record(rules, selection, scores, result)}
    return SelectResult(result, selection, scores, record, rules.budget.note(rest, selection))


def dropped_before(scores: Scores, rules: SelectionRules) -> dict[int, str]:
    """Find what is dropped before the selector sees it: index -> reason."""
    reasons = {i: rules.contaminated[id_] for i, id_ in enumerate(scores.ids) if id_ in rules.contaminated}
    # Contamination comes last in the union, so that it is the reason given.
    reasons = apply_filters(rules.filters, scores.columns, scores.ids) | reasons
    # Duplicates are found among the rest: otherwise a filter could drop the first copy, and this the second.
    if rules.drop_duplicates or rules.near is not None:
        reasons |= find_duplicates(scores, reasons)
    return reasons


def add_mean_rank(table: ScoreTable, rules: SelectionRules, ranks: MeanRank) -> ScoreTable:
    """Return the table with the mean of ranks that the rules rank by.

    An example is ranked among those that have all the scores and that the rules drop for no other reason; what they
    drop gets the rank that it would have there.
    """
    columns = {name: table.floats(name) for name in ranks.names}  # (rows,), also of bad rows
    holes = {row for name in columns for row in table.reasons[name]}
    problems = {
        row: why
        for row in sorted(holes)
        if (why := join_reasons({name: table.reasons[name].get(row) for name in columns}))
    }
    empty = np.where(np.isin(np.arange(len(table)), [*problems]), np.nan, 0.0)
    scores = table.with_score(rules.by, empty, problems).scores(rules.by)
    gone = dropped_before(scores, rules)
    rows = table.example_rows()
    there = [row for i, row in enumerate(rows.tolist()) if i not in gone and i not in scores.problems]
    values = ranks.values(columns, {name: column[there] for name, column in columns.items()})
    if not there:  # nothing can be kept; equal numbers, as each of them needs a reason otherwise
        values = empty
    return table.with_score(rules.by, values, problems)


def find_contaminated(dataset: Dataset, settings: SelectSettings, reporter: Reporter) -> ContaminationResult:
    """Find examples that also occur in the given evaluation files; without files, find none."""
    against = [Path(name).expanduser() for name in settings.drop_contaminated]
    if not against:
        return ContaminationResult({}, {})
    found = find(dataset, against, reporter=reporter)
    names = ", ".join(found.record["against"])
    reporter.say(f"{len(found.examples):,} examples share text with {names}: they are dropped")
    return found


def add_vectors(scores: Scores, selector: Selector, result: ScoreResult) -> Scores:
    """Add prompt vectors if the selector compares examples; those that cannot be kept get zeros."""
    spec = getattr(selector, "encoder", None)
    if spec is None or result.vectors is None:
        return scores
    there = np.flatnonzero(~np.isnan(scores.values))  # only these are embedded, which costs forward passes
    found = result.vectors([scores.ids[i] for i in there.tolist()], spec)
    vectors = np.zeros((len(scores), found.shape[1] if len(there) else 1), dtype=np.float32)  # (examples, dim)
    if len(there):
        vectors[there] = found
    return replace(scores, vectors=vectors)


def find_duplicates(scores: Scores, gone: Mapping[int, str]) -> dict[int, str]:
    """Find later copies among the examples that nothing else drops, so that one copy always stays: index -> reason."""
    there = [i for i in range(len(scores)) if i not in gone and i not in scores.problems]
    again = drop_duplicates([strip_occurrence(scores.ids[i]) for i in there])
    return {there[place]: reason for place, reason in again.items()}


def index_near_duplicates(dataset: Dataset, settings: SelectSettings, reporter: Reporter) -> NearDuplicates | None:
    """Index the data set by similarity; None if near-duplicates stay."""
    threshold = settings.drop_near_duplicates
    return None if threshold is None else NearDuplicates.of(dataset, threshold, reporter)


def find_near_duplicates(rest: Scores, near: NearDuplicates, selector: Selector, result: ScoreResult) -> dict[int, str]:
    """Find near-duplicates of an example that the selector takes before them: index -> reason.

    A selector that is an order takes them in that order; for the others, the higher score comes first. Of equal scores
    the first example stays, as of exact duplicates.
    """
    first = selector.order(rest).tolist() if isinstance(selector, Ranked) else []
    order = [*dict.fromkeys([*first, *Top().order(rest).tolist()])]
    table = result.score_table
    rows = dict(zip(table.values("id"), table.values("row"), strict=True))
    ids = [rest.ids[i] for i in order]
    twins = near.find(ids, [rows[id_] for id_ in ids])
    return {i: twins[id_].reason for i, id_ in zip(order, ids, strict=True) if id_ in twins}


def count_repeated(ids: Sequence[str]) -> int:
    """Count the examples whose content an earlier one of them already has."""
    return len(ids) - len(set(map(strip_occurrence, ids)))


def ranking_scorer(method: Method, by: str | None) -> str:
    """Return the name of the score that ranks: `by` in one spelling, or the first scorer.

    Raises:
        SettingsError: `by` is not scored.
    """
    names = list(method.scorers)
    if (ranks := ranks_of(method, by)) is not None:
        return str(ranks)
    if by is not None and by not in names:
        hint = FORM if "+" in by else did_you_mean(by, names)
        raise SettingsError(f"cannot rank by `{by}`, which is not scored", hint=hint)
    return by or names[0]


def ranks_of(method: Method, by: str | None) -> MeanRank | None:
    """Return the mean of ranks that `by` says, over residual scores where there are some; None for a scorer's name.

    Raises:
        SettingsError: it cannot be read, or a part of it is not scored.
    """
    if by is None or not is_mean_rank(by):
        return None
    ranks, names = MeanRank.parse(by), list(method.scorers)
    for term in ranks.terms:
        if term.name not in names:
            every = ",".join(dict.fromkeys([*names, *ranks.names]))
            known = plugins.names(plugins.SCORERS)
            hint = f"`--scorer {every}`" if term.name in known else did_you_mean(term.name, known)
            raise SettingsError(f"cannot rank by `{by}`: `{term.name}` is not scored", hint=hint)
        if term.spec != term.name:
            raise SettingsError(
                f"cannot rank by `{by}`: settings belong to `--scorer`", hint=f"`rank({term.name})` names its score"
            )
    return ranks.renamed({name: residual_name(name) for name in method.residualised})


def choose_filters(
    method: Method, source: DataSource, settings: SelectSettings, by: str, reporter: Reporter
) -> list[Filter]:
    """Return the given filters, or the defaults of the scorers that rank; check their columns.

    Raises:
        SettingsError: a filter names an unknown column.
    """
    ranks = ranks_of(method, settings.by)
    ranking = [by] if ranks is None else MeanRank.parse(settings.by or "").names
    defaults = {name: text for name in ranking if (text := method.scorers[name].default_drop)}
    texts = settings.drop if settings.drop is not None else tuple(defaults.values())
    filters = [Filter.parse(text) for text in texts]
    known = [*method.score_columns, *COUNTS[:-1], *source.columns]
    for each in filters:
        each.check(known)
    for name, default in defaults.items():
        if settings.drop and Filter.parse(default).column not in [each.column for each in filters]:
            reporter.say(f"note: these filters replace {name}'s default filter, `{default}`")
    return filters


def input_columns(method: Method, source: DataSource, selector: Selector, filters: Sequence[Filter]) -> list[str]:
    """Return the input columns that the filters and the selector read.

    Raises:
        SettingsError: the input has no such column.
    """
    computed = {*method.score_columns, *COUNTS[:-1]}  # the last one, `problem`, is text
    wanted = [each.column for each in filters]
    made = [name for name in getattr(selector, "reads", ()) if name in COMPUTED]
    if isinstance(getattr(selector, "by", None), str):
        wanted.append(selector.by)  # type: ignore[attr-defined]
    for name in wanted:
        if name not in computed and name not in source.columns:
            hint = did_you_mean(name, [*source.columns, *computed])
            raise SettingsError(f"`{source.dataset.source}` has no column `{name}` beside the dialogue", hint=hint)
    return [*dict.fromkeys([*made, *(name for name in wanted if name not in computed)])]


def selection_record(
    rules: SelectionRules, selection: Selection, scores: Scores, result: ScoreResult
) -> dict[str, Any]:
    """Return the record of a selection: counts that add up, and how the kept differ from the pool."""
    kept, table = set(selection.kept), result.score_table
    mask = np.array([id_ in kept for id_ in scores.ids], dtype=bool)  # (examples,)
    bad = sum(result.record["counts"]["bad_rows"].values())
    return {
        "by": scores.by,
        **({} if rules.ranks is None else {"ranks": ranks_record(rules.ranks, scores, result)}),
        "selector": selection.by,
        "budget": str(rules.budget),
        "filters": [each.text for each in rules.filters],
        "examples": len(scores),
        "kept": len(selection.kept),
        "kept_records": len(
            {row for id_, row in zip(table.values("id"), table.values("row"), strict=True) if id_ in kept}
        ),
        "dropped": count_reasons(selection, {scores.ids[i] for i in scores.problems}),
        "bad_rows": bad,
        "duplicates": {"pool": count_repeated(scores.ids), "kept": count_repeated(selection.kept)},
        "quantiles": {
            name: {"pool": quartiles(column), "kept": quartiles(column[mask])}
            for name, column in shown_columns(scores, result).items()
        },
        "rank_correlation_with_length": rank_correlation(scores.values, scores.columns["response_tokens"]),
    }


def ranks_record(ranks: MeanRank, scores: Scores, result: ScoreResult) -> list[dict[str, Any]]:
    """Return the parts of a mean of ranks: their weights, what is good, and how far each part agrees with the mean."""
    table = result.score_table
    rows = table.example_rows()
    return [
        {
            "score": term.name,
            "weight": term.weight,
            "good": "low" if term.low else "high",
            "rank_correlation": rank_correlation(table.floats(term.name)[rows], scores.values),
        }
        for term in ranks.terms
    ]


def shown_columns(scores: Scores, result: ScoreResult) -> dict[str, FloatArray]:
    """Return the columns to report for a selection: the ranking score, its scorer's other columns, and lengths."""
    besides = [name for name in result.score_table.more if name.startswith(f"{scores.by}_")]
    if is_mean_rank(scores.by):
        besides = [name for name in result.score_table.scorers if name in MeanRank.parse(scores.by).names]
    names = [*besides, "response_tokens"]
    return {scores.by: scores.values, **{name: scores.columns[name] for name in names}}


def count_reasons(selection: Selection, problems: set[str]) -> dict[str, int]:
    """Count dropped examples by reason, most frequent first; problems that differ only in details count as one."""
    whole: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for id_, reason in selection.dropped.items():
        short = without_details(reason) if id_ in problems else without_number(reason)
        whole.setdefault(short, set()).add(reason)
        counts[short] += 1
    return {
        without_number(next(iter(whole[short]))) if len(whole[short]) == 1 else short: n
        for short, n in counts.most_common()
    }


def suggest_changes(reasons: Sequence[str]) -> str:
    """Return a hint: the options to change, given why examples were dropped."""
    ways = []
    if any("neighbour" in reason for reason in reasons):
        ways.append("`--exclude-similarity`, `--shot-pool` and `--encoder` decide which neighbours there are")
    if any(word in reason for reason in reasons for word in ("token", "length", "no room for")):
        ways.append("`--max-length`, `--template` and `--truncation` decide what fits")
    if any(sign in reason for reason in reasons for sign in ("<", ">", "=")):
        ways.append("`--drop` gives another filter, `--no-drop` none")
    return "; ".join(ways) or "`dropped.jsonl` in the run folder has every record with its reason"


def quartiles(values: np.ndarray[Any, Any]) -> list[float] | None:
    """Return minimum, quartiles and maximum; None without values."""
    there = values[~np.isnan(values)]
    return np.quantile(there, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(there) else None


def with_reasons(chosen: SelectResult) -> Iterator[pa.Table]:
    """Yield the score table in parts, with a column `dropped`: why the row is not kept, null if it is."""
    import pyarrow as pa

    dropped = chosen.selection.dropped
    for part in chosen.scored.score_table.parts():
        rows = zip(part["id"].to_pylist(), part["problem"].to_pylist(), strict=True)
        reasons = [problem if id_ is None else dropped.get(id_) for id_, problem in rows]
        yield part.append_column("dropped", pa.array(reasons, pa.string()))


def narrow_scores(chosen: SelectResult, dataset: Dataset, learned: dict[str, Any]) -> ScoreResult:
    """Return the scores of the examples that a selection kept.

    Args:
        chosen: the selection.
        dataset: the data set, reduced to these examples.
        learned: dict for the record, which the next selection fills.
    """
    kept, before = set(chosen.selection.kept), chosen.scored.score_table  # bad rows are left out: their id is None
    table = before.take([i for i, id_ in enumerate(before.values("id")) if id_ in kept])
    nothing: dict[str, Any] = {"bad_rows": {}, "notes": {}}  # the first stage reports them
    record = chosen.scored.record | {"counts": chosen.scored.record["counts"] | nothing, "learned": learned}
    return replace(chosen.scored, dataset=dataset, record=record, score_table=table, learned={})


def combine_stages(
    stages: Sequence[StageResult], settings: SelectSettings, dataset: Dataset, folder: Path | None
) -> PipelineResult:
    """Combine the stages into one table, one selection and one record for the whole input."""
    first, last = stages[0].chosen, stages[-1].chosen
    leavers = {id_: done.stage for done in stages for id_ in done.chosen.dropped}
    dropped = {id_: f"{done.stage.label}: {why}" for done in stages for id_, why in done.chosen.dropped.items()}
    ids = [id_ for id_ in first.scored.score_table.values("id") if id_ is not None]
    text = " -> ".join(done.stage.text for done in stages)
    selection = Selection(last.kept, {id_: dropped[id_] for id_ in ids if id_ in dropped}, by=text)
    assert set(selection.kept) | set(selection.dropped) == set(ids), "an example was lost"
    table = combine_tables(stages, leavers)
    base = first.record
    record = basic_record(settings)
    record["dataset"] = base["dataset"]
    record["counts"] = {name: base["counts"][name] for name in POOL}
    record["work"] = sum_work([done.chosen.record["work"] for done in stages if done.column])
    scored = ScoreResult(dataset, record, folder, table, first.scored.input_check)
    scores = table.scores(ranking_column(stages))
    # The record of the whole names the pipeline as its budget; nothing is selected with these rules.
    ranks = MeanRank.parse(scores.by) if is_mean_rank(scores.by) else None
    rules = SelectionRules(scores.by, Top(), replace(Budget.parse(1), text=text), ranks=ranks)
    record["selection"] = selection_record(rules, selection, scores, scored) | {
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


def ranking_column(stages: Sequence[StageResult]) -> str:
    """Return the column of the whole table by which the last stage that scored ranked: it may have several scorers."""
    last = next(done for done in reversed(stages) if done.column is not None)
    assert last.column is not None
    return last.columns.get(last.chosen.scores.by, last.column)


def combine_tables(stages: Sequence[StageResult], leavers: Mapping[str, Stage]) -> ScoreTable:
    """Return one row per example and bad row, and a column per scoring stage; counts and NLLs come from the first.

    Args:
        stages: all stages.
        leavers: id -> the stage that dropped the example; later stages have no score for it.
    """
    first = stages[0].chosen.scored.score_table
    ids = first.values("id")
    # Rows follow the first stage, which has seen every record; a later stage fills its columns where it has the id.
    columns: dict[str, Any] = {name: first.values(name) for name in FIXED}
    reasons: dict[str, dict[int, str]] = {}
    more, texts = dict[str, Any](), dict[str, Any]()
    bad = {i: first.reasons[first.scorers[0]][i] for i, id_ in enumerate(ids) if id_ is None}
    for done in stages:
        grown = done.chosen.scored.score_table
        own = {id_: i for i, id_ in enumerate(grown.values("id"))}
        places = [None if id_ is None else own.get(id_) for id_ in ids]
        for name, column in done.columns.items():
            values = grown.values(name)
            moved = [None if i is None else values[i] for i in places]
            if name not in grown.scorers:
                (texts if name in grown.texts else more)[column] = moved
                continue
            columns[column], said = moved, grown.reasons[name]
            reasons[column] = {
                row: why
                for row, (i, id_) in enumerate(zip(places, ids, strict=True))
                if (why := bad.get(row) if id_ is None else reason_of_stage(leavers[id_]) if i is None else said.get(i))
            }
        if done is stages[0] or (done is stages[1] and stages[0].stage.name):  # behind a gate, what its scorers read
            likelihoods = {name: grown.values(name) for name in NLLS}
            columns |= {
                name: [None if i is None else values[i] for i in places] for name, values in likelihoods.items()
            }
    columns |= more | texts | {name: first.values(name) for name in COUNTS[:-1] if name not in NLLS}
    # A mean of ranks lacks what one of its scorers lacks, which is said there.
    told = {name: said for name, said in reasons.items() if not is_mean_rank(name)}
    columns["problem"] = [join_reasons({name: said.get(i) for name, said in told.items()}) for i in range(len(ids))]
    return ScoreTable.from_columns(columns, reasons, more, texts)


def reason_of_stage(stage: Stage) -> str:
    """Return the reason why the stages after this one have no score for an example."""
    return f"dropped in {stage.label}"


def sum_work(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the work of the stages; the longest wait is a maximum."""
    work = {name: sum(part[name] for part in parts) for name in parts[0] if name != "tokens_per_second"}
    work["longest_wait_seconds"] = max(part["longest_wait_seconds"] for part in parts)
    seconds = work["reading_seconds"]
    return work | {"tokens_per_second": round(work["tokens_read"] / seconds, 1) if seconds else None}
