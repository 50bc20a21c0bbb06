"""Select in one stage or several: score, choose, and write the kept and the dropped records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from tithe import plugins
from tithe.data.export import write_dropped
from tithe.data.outfile import atomic
from tithe.data.writers import DroppedRecords
from tithe.duplicates.near import NearDuplicates
from tithe.errors import DataError, SettingsError, TitheError
from tithe.report.reporter import Reporter
from tithe.run.choose import (
    SelectionRules,
    choose,
    choose_filters,
    combine_stages,
    find_contaminated,
    index_near_duplicates,
    input_columns,
    narrow_scores,
    ranking_scorer,
    ranks_of,
    suggest_changes,
    with_reasons,
)
from tithe.run.engines import EngineCache
from tithe.run.folder import (
    DROPPED,
    RECORD,
    SCORES,
    TOKENS,
    RecordWriter,
    check_places,
    inputs_of,
    recorded_run,
    remove_partial_files,
    run_folder,
    write_json,
    write_table,
)
from tithe.run.gate import GATE, GatePlan, is_gates, open_gate, report_gate, text_columns
from tithe.run.gate_check import check_selection
from tithe.run.method import Method, Setup, basic_record, inherited_settings, residual_name, set_up
from tithe.run.results import ScoreResult, SelectResult, StageResult
from tithe.run.score import Scoring, check_warmup, warm_up
from tithe.run.source import DataSource, Pools
from tithe.run.table import COUNTS, NLLS
from tithe.scorers.sound import Sound
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.filters import Filter
from tithe.selectors.gate_selector import Gate
from tithe.settings import SelectSettings, check_inherited
from tithe.stages import Stage, base_name, naming_stage, parse_pipeline

FOLDER = "stage-{}"
ELSEWHERE = ("scorer", "preset", "by", "selector", "keep", "residualise")  # each stage has its own


@dataclass(frozen=True)
class StageJob:
    """A stage that is ready to run. A selection without a pipeline is a single job without a stage.

    Args:
        stage: the parsed stage; None for a selection without a pipeline.
        settings: the settings `select` would have if this stage were the whole run.
        method: the stage's scorers and selector.
        selector: the stage's selector.
        column: name of the score that ranks in the final table; None if it uses the scores of an earlier stage.
        setup: the stage on the whole data set, checked before anything is scored.
        extra: input columns that its filters and selectors read.
        gate: how strict the gate is; None for any other stage.
        earlier: readouts that the gate has read of all `given` passes.
        columns: the stage's scores -> their names in the final table.
    """

    stage: Stage | None
    settings: SelectSettings
    method: Method
    selector: Selector
    column: str | None
    setup: Setup
    extra: Sequence[str]
    gate: GatePlan | None = None
    earlier: frozenset[str] = frozenset()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> bool:
        """Whether the stage scores; otherwise it uses the scores of the stage before."""
        return self.stage is None or self.stage.scorer is not None

    def budget(self, total: int) -> Budget:
        """Return how much the job keeps.

        Args:
            total: examples of the whole input.
        """
        s = self.settings
        return Budget.parse(s.keep, of=s.keep_of) if self.stage is None else self.stage.budget_for(total, s.keep_of)


def select(
    settings: SelectSettings,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SelectResult:
    """Score a data set and keep the part that a selector takes; with a pipeline, do so stage by stage.

    - Budgets compound: a share counts from what enters the stage, or from the whole input with `of all`. Rows and
      tokens are absolute; a stage that asks for more than is left keeps everything and notes it.
    - A stage scores only what is left, and its scorer learns (neighbours) only from that.
    - A stage uses its scorer's default filter. A filter that the user gives goes to the first stage that has its
      column, and replaces the default there. Duplicates (exact and near) and contaminated examples are dropped in the
      first stage.
    - A stage without a scorer chooses by the scores of the stage before.
    - A gate is a stage before the others, which keeps what looks sound (`behind_gate`); without a pipeline, all that
      the settings say follows it as one stage, and a share to keep still counts from the whole input.
    - The run folder holds the answers of all stages together, and each stage's score table in `stage-N`.

    Args:
        settings: what to score, how, and what to keep.
        folder: the run folder: scores, dropped records with reasons, run record; None keeps nothing.
        output: where the kept records go.
        overwrite: replace `output` if it exists.
        reporter: prints progress and notes.

    Raises:
        TitheError: the run cannot go on; names the stage. Answers so far stay in the run folder.
    """
    reporter = reporter or Reporter()
    check_places(output, overwrite, settings.dataset, folder, inputs_of(settings))
    if settings.pipeline is None:
        jobs, waiting = [single_job(settings, folder, reporter)], list[str]()
    else:
        jobs, waiting = make_jobs(settings, folder)
    if settings.gate is None:
        check_ungated(settings)
    else:
        jobs = behind_gate(settings, jobs, folder)
    # All checks are done by now: below, the run folder is made and locked.
    whole = jobs[0].setup.source
    near = index_near_duplicates(whole.dataset, settings, reporter)
    found = find_contaminated(whole.dataset, settings, reporter)
    with (
        run_folder(folder) as place,
        recorded_run(folder, reporter, lambda: basic_record(settings)) as writer,
        closing(EngineCache(reporter)) as engines,
    ):
        if len(jobs) > 1:
            clear_stage_folders(place)
        cascade = PipelineRun(
            settings, jobs, whole, place, folder, reporter, waiting, found.examples, writer, engines, near=near
        )
        result = cascade.run()
        looked = cascade.check_for_damage(result)
        told = found.told | ({} if near is None else {"near_duplicates": near.record})
        result = replace(result, record=result.record | told | looked | writer.finished())
        writer.record = lambda: result.record
        if folder is not None:
            write_table(folder / SCORES, with_reasons(result))
        if not result.kept:
            write_dropped_and_record(result, folder)
            raise nothing_kept(result, whole=True)
        if output is None:
            write_dropped_and_record(result, folder)
        else:  # the output comes last: once it exists, the run folder is complete
            remove_partial_files(output)
            write_kept_and_dropped(result, folder, output, settings, overwrite)
    return result


def write_dropped_and_record(result: SelectResult, folder: Path | None) -> None:
    """Write the dropped records and the run record."""
    if folder is not None:
        write_dropped(result.scored.dataset, result.reasons_by_row(), folder / DROPPED, result.scores_beside)
        write_json(folder / RECORD, result.record)


def write_kept_and_dropped(
    result: SelectResult, folder: Path | None, output: Path, settings: SelectSettings, overwrite: bool
) -> None:
    """Write the kept and the dropped records in one pass over the data set; the output gets its name last."""
    if folder is None:
        result.write(output, shape=settings.shape, overwrite=overwrite, with_scores=settings.with_scores)
        return
    try:
        with ExitStack() as stack:
            dropped = DroppedRecords(
                stack.enter_context(atomic(folder / DROPPED, overwrite=True)),
                result.reasons_by_row(),
                result.scores_beside,
            )

            def finish() -> None:
                stack.close()
                write_json(folder / RECORD, result.record)

            result.write(
                output,
                shape=settings.shape,
                overwrite=overwrite,
                with_scores=settings.with_scores,
                dropped=dropped,
                then=finish,
            )
    except TitheError:
        write_dropped_and_record(result, folder)  # if the output cannot be written, keep the rest of the results
        raise


def single_job(settings: SelectSettings, folder: Path | None, reporter: Reporter) -> StageJob:
    """Return the one job of a selection without a pipeline."""
    Budget.parse(settings.keep, of=settings.keep_of)
    selector = plugins.build_selector(settings.selector, inherited_settings(settings))
    method = Method.of(settings, (selector,))
    check_inherited(settings, [*method.scorers.values(), selector])
    by = ranking_scorer(method, settings.by)
    if settings.residualise and by == "length":
        raise SettingsError(
            "`residualise` subtracts what length predicts, and `length` ranks", hint="`--by` names another scorer"
        )
    source = DataSource.open(settings)
    filters = choose_filters(method, source, settings, by, reporter)
    extra = input_columns(method, source, selector, filters)
    setup = set_up(settings, method=method, source=source, folder=folder)
    check_warmup(setup, folder)
    return StageJob(None, settings, method, selector, None, setup, extra)


def clear_stage_folders(place: Path) -> None:
    """Delete the stage results of an earlier run, which may have had more stages."""
    for earlier in place.glob(FOLDER.format("*")):
        for name in (SCORES, TOKENS, DROPPED, RECORD):
            with suppress(FileNotFoundError, NotADirectoryError):
                (earlier / name).unlink()


@dataclass
class PipelineRun:
    """A selection in progress: the finished stages, and all that the next ones need.

    Args:
        settings: settings of the whole run.
        jobs: all stages.
        whole: the whole data set.
        place: folder of stored answers; a temporary one without a run folder.
        folder: the run folder to name in results; None for a temporary one.
        reporter: prints progress and notes.
        waiting: filters whose column no stage has had yet.
        contaminated: id -> reason, for examples that the first stage drops.
        writer: writes the run record if the run stops early.
        engines: keeps the model loaded between stages.
        done: the finished stages.
        near: index of near-duplicates, which the first stage drops; None if they stay.
    """

    settings: SelectSettings
    jobs: Sequence[StageJob]
    whole: DataSource
    place: Path
    folder: Path | None
    reporter: Reporter
    waiting: list[str]
    contaminated: Mapping[str, str]
    writer: RecordWriter
    engines: EngineCache
    done: list[StageResult] = field(default_factory=list)
    near: NearDuplicates | None = None

    def run(self) -> SelectResult:
        """Run all stages.

        Raises:
            TitheError: a stage cannot go on; in a pipeline the message names it.
        """
        if self.jobs[0].stage is None:
            return self.run_single(self.jobs[0])
        for job in self.jobs:
            assert job.stage is not None
            with naming_stage(job.stage):
                self.run_stage(job, job.stage)
        for text in self.waiting:
            self.reporter.say(f"note: the filter `{text}` did nothing: no stage reads its column")
        return combine_stages(self.done, self.settings, self.whole.dataset, self.folder)

    def check_for_damage(self, result: SelectResult) -> dict[str, Any]:
        """Look for damage in a selection that was made without a gate, if the model is in memory."""
        settings, engine = self.settings, self.engines.engine
        reads = [job for job in self.jobs if job.setup.reads_model]
        ours = next((job for job in reads if job.setup.model.fingerprint == self.engines.fingerprint), None)
        gated = settings.gate is not None or any(Sound.name in job.method.scorers for job in self.jobs)
        if not settings.gate_check or gated or engine is None or ours is None or not result.kept:
            return {}
        return {"gate_check": check_selection(result, settings, ours.setup, self.engines, self.reporter, self.place)}

    def run_single(self, job: StageJob) -> SelectResult:
        """Run the single stage of a selection without a pipeline."""
        setup = warm_up(job.setup, self.folder, self.reporter)
        scored = Scoring(setup, self.engines, self.reporter, self.place, self.writer, extra=job.extra).run(self.folder)
        return choose(scored, self.rules(job, setup, scored, len(scored)))

    def run_stage(self, job: StageJob, stage: Stage) -> None:
        """Score the examples that are left, and keep a part of them.

        Raises:
            DataError: nothing is kept.
        """
        self.reporter.say(f"{stage.label}:")
        setup = job.setup if not self.done else self.narrow(job, self.done[-1].chosen.rows())
        with run_folder(self.place / FOLDER.format(stage.number)) as here:
            own = RecordWriter(None, self.reporter, dict)  # collects the stage's record; only the run writes one
            scoring = Scoring(setup, self.engines, self.reporter, here, own, self.place, job.extra, job.earlier)
            scored = self.score_stage(job, stage, scoring)
            total = len(self.done[0].chosen.scores) if self.done else len(scored.scores())
            if job.gate is None:
                chosen = choose(scored, self.rules(job, setup, scored, total))
            else:
                chosen = self.run_gate(job, setup, scoring, scored)
            chosen = replace(chosen, scored=replace(chosen.scored, vectors=None))  # frees the examples
            write_table(here / SCORES, with_reasons(chosen))
        result = StageResult(stage, job.column, chosen, total, columns_of(job, chosen))
        self.reporter.say(result.sentence)
        if not chosen.kept:
            raise nothing_kept(chosen)
        if chosen.note:
            self.reporter.say(f"note: {chosen.note}")
        self.done.append(result)

    def run_gate(self, job: StageJob, setup: Setup, scoring: Scoring, scored: ScoreResult) -> SelectResult:
        """Decide how strict the gate is, keep what looks sound, and report what it does."""
        assert job.gate is not None
        behind = self.jobs[1]
        ahead = self.rules_ahead(behind, setup, scored)
        opened = open_gate(
            job.gate,
            scoring,
            scored,
            by=ranking_scorer(behind.method, behind.settings.by),
            ranks=ranks_of(behind.method, behind.settings.by),
            ahead=lambda gone: choose(scored, replace(ahead, contaminated={**self.contaminated, **gone})),
        )
        rules = SelectionRules(
            "sound",
            job.selector,
            opened.budget,
            (),
            job.settings.drop_duplicates,
            self.contaminated,
            near=self.near,
        )
        chosen = choose(scored, rules)
        facts = report_gate(opened, scored, chosen, setup, job.extra, self.reporter)
        return replace(chosen, record=chosen.record | {"gate": facts})

    def rules_ahead(self, job: StageJob, setup: Setup, scored: ScoreResult) -> SelectionRules:
        """Return the rules of the stage behind the gate, to see what it would choose."""
        waiting, reporter = list(self.waiting), self.reporter
        self.reporter = Reporter()  # what the stage says of its filters is said when it runs
        rules = self.rules(job, replace(setup, method=job.method), scored, len(scored.scores()))
        self.waiting, self.reporter = waiting, reporter
        return replace(rules, drop_duplicates=self.jobs[0].settings.drop_duplicates)

    def narrow(self, job: StageJob, places: Mapping[int, Collection[int]]) -> Setup:
        """Return the setup of a later stage: its method on the examples that are left.

        Args:
            job: the stage.
            places: row -> kept turns, from the stage before.
        """
        source, before = self.whole.part(places), job.setup
        setup = set_up(job.settings, method=job.method, source=source, pools=before.pools, folder=self.folder)
        return replace(setup, notes=[*dict.fromkeys([*before.notes, *setup.notes])])

    def score_stage(self, job: StageJob, stage: Stage, scoring: Scoring) -> ScoreResult:
        """Return the stage's own scores, or the scores of the stage before for the examples that are left."""
        if not job.scores:
            bench = scoring.bench
            bench.tidy()
            return replace(
                narrow_scores(self.done[-1].chosen, scoring.setup.source.dataset, bench.facts), vectors=bench.vectors
            )
        own = scoring.writer
        assert own is not None
        self.writer.record, self.writer.stored = lambda: self.record_so_far(stage, own), lambda: own.stored()
        return scoring.run(None if self.folder is None else scoring.place)

    def record_so_far(self, stage: Stage, own: RecordWriter) -> dict[str, Any]:
        """Return the record of the finished stages and of the current one."""
        now = {"stage": stage.number, "text": stage.text, **own.record()}
        return basic_record(self.settings) | {"stages": [*(done.record for done in self.done), now]}

    def rules(self, job: StageJob, setup: Setup, scored: ScoreResult, total: int) -> SelectionRules:
        """Return the rules by which this stage chooses; take over the waiting filters whose column it has."""
        method, settings = setup.method, job.settings
        # An NLL column has values only where a scorer of the stage has read that kind of pass.
        there = {name for name in scored.score_table.schema.names if scored.score_table.has_values(name)}
        ripe = [text for text in self.waiting if Filter.parse(text).column in there]
        self.waiting = [text for text in self.waiting if text not in ripe]
        if ripe:
            settings = settings.model_copy(update={"drop": (*(settings.drop or ()), *ripe)})
        by, ranks = ranking_scorer(method, settings.by), ranks_of(method, settings.by)
        said = job.stage is None or job.stage.name  # when the filters were checked
        silent = Reporter() if said else self.reporter
        filters = choose_filters(method, setup.source, settings, by, silent)
        return SelectionRules(
            residual_name(by) if by in method.residualised else by,
            job.selector,
            job.budget(total),
            filters,
            settings.drop_duplicates,
            {} if self.done else self.contaminated,
            near=None if self.done else self.near,
            ranks=ranks,
        )


def columns_of(job: StageJob, chosen: SelectResult) -> dict[str, str]:
    """Return which columns of a stage's table the final one has, and their names there."""
    table = chosen.scored.score_table
    if job.stage is not None and job.stage.name:  # the gate, or all scorers behind one
        own = [name for name in (*table.scorers, *table.more, *table.texts) if job.gate is None or is_gates(name)]
        return {name: name for name in own}
    return dict(job.columns) if job.scores else {}


def behind_gate(settings: SelectSettings, jobs: Sequence[StageJob], folder: Path | None) -> list[StageJob]:
    """Return the gate's stage, and the stages behind it.

    Raises:
        TitheError: the gate cannot run with these settings.
    """
    first = jobs[0]
    if first.stage is None:
        budget = Budget.parse(settings.keep, of=settings.keep_of)
        of_all = budget.unit == "share" and settings.keep_of == "input"
        by = ranking_scorer(first.method, settings.by)
        text = f"{by}: {settings.keep}"
        stage = Stage(1, text, by, settings.selector, None, str(settings.keep), of_all, name=by)
        first = replace(first, stage=stage, column=by)
    plan = GatePlan.of(settings, first.method)
    source = first.setup.source
    own = first.settings.model_copy(
        update={
            "scorer": (plan.spec,),
            "model": settings.model,
            "by": None,
            "drop": (),
            "preset": None,
            "pipeline": None,
            "residualise": None,
        }
    )
    selector = Gate(settings.gate_within)
    same_model = first.settings.model == settings.model
    method = plan.method(own, selector, first.method, source, same_model=same_model)
    extra = input_columns(method, source, selector, [])
    extra = list(dict.fromkeys([*extra, *text_columns(source), *(first.extra if plan.auto else ())]))
    with naming_stage(GATE):
        setup = set_up(own, method=method, source=source, pools=first.setup.pools, folder=folder)
    gate = StageJob(replace(GATE, text=f"gate: {settings.gate}"), own, method, selector, "sound", setup, extra, plan)
    quiet = [note for note in first.setup.notes if note not in source.dataset.notes]
    # Duplicates are dropped once, before the gate.
    later = first.settings.model_copy(update={"drop_duplicates": False, "drop_contaminated": ()})
    earlier = frozenset(readout for one in method.scorers.values() if isinstance(one, Sound) for readout in one.along)
    first = replace(first, settings=later, setup=replace(first.setup, notes=quiet), earlier=earlier)
    return [gate, first, *jobs[1:]]


def check_ungated(settings: SelectSettings) -> None:
    """Refuse settings of a gate where there is none.

    Raises:
        SettingsError: one of them is set.
    """
    for name in ("gate_damage", "gate_within"):
        if getattr(settings, name) != SelectSettings.model_fields[name].default:
            raise SettingsError(
                f"`{name}` is given, and there is no gate", hint="`--gate 50%` or `--gate auto` makes one"
            )


def check_settings(settings: SelectSettings) -> None:
    """Refuse settings that each stage of a pipeline sets itself.

    Raises:
        SettingsError: one of them is set.
    """
    if settings.warmup:
        raise SettingsError(
            "`warmup` does not go with a pipeline, whose stages may have models of their own",
            hint="`tithe warmup DATA --model M -o M-pre`, and then for example `superfiltering:20% -> ifd@M-pre:5%`",
        )
    for name in ELSEWHERE:
        if getattr(settings, name) != SelectSettings.model_fields[name].default:
            raise SettingsError(
                f"`--{name}` does not go with `--pipeline`, whose stages name what they score, choose and keep",
                hint="for example `superfiltering:20% -> ifd|bottom:5%`",
            )


def make_jobs(settings: SelectSettings, folder: Path | None) -> tuple[list[StageJob], list[str]]:
    """Return the checked stages, and the filters that wait for the first stage that has their column.

    Raises:
        TitheError: a stage cannot run; found before anything is scored, and the message names the stage.
    """
    stages = parse_pipeline(settings.pipeline or "")
    check_settings(settings)
    columns, source, pools = column_names(stages), DataSource.open(settings), Pools(settings)
    drops, waiting = assign_filters(stages, columns, settings.drop, source)
    selectors, used = list[Selector](), list[Any]()
    for stage in stages:
        with naming_stage(stage):
            selectors.append(plugins.build_selector(stage.selector, inherited_settings(settings)))
            used += [plugins.build_scorer(spec, inherited_settings(settings)) for spec in stage.specs]
    check_inherited(settings, [*used, *selectors])
    jobs: list[StageJob] = []
    # Every stage is set up on the whole data set first, so that a mistake in stage 3 is found before stage 1 runs.
    for i, stage in enumerate(stages):
        own = settings.model_copy(
            update={
                "scorer": stage.specs or jobs[-1].settings.scorer,
                "by": (str(stage.ranks) if stage.ranks else None) if stage.scorer else jobs[-1].settings.by,
                "model": stage.model or (settings.model if stage.scorer else jobs[-1].settings.model),
                "selector": stage.selector,
                "keep": stage.budget,
                "drop": drops[i] if stage.scorer else (),
                "drop_duplicates": settings.drop_duplicates and i == 0,
                "drop_contaminated": settings.drop_contaminated if i == 0 else (),
                "pipeline": None,
            }
        )
        with naming_stage(stage):
            method = Method.of(own, (selectors[i],))
            filters = [Filter.parse(text) for text in own.drop or ()]
            extra = input_columns(method, source, selectors[i], filters)
            setup = set_up(own, method=method, source=source, pools=pools, folder=folder)
        if jobs:  # the notes on the data set are printed once
            setup = replace(setup, notes=[note for note in setup.notes if note not in source.dataset.notes])
        named = columns[i]
        column = named[ranking_scorer(method, own.by)] if named else None
        jobs.append(StageJob(stage, own, method, selectors[i], column, setup, extra, columns=named))
    return [replace(job, extra=columns_read(jobs[i:])) for i, job in enumerate(jobs)], waiting


def columns_read(jobs: Sequence[StageJob]) -> list[str]:
    """Return the input columns that the first of these jobs reads, and the jobs after it that reuse its scores."""
    first, *rest = jobs
    readers = [first, *takewhile(lambda job: not job.scores, rest)]
    return list(dict.fromkeys(name for job in readers for name in job.extra))


def column_names(stages: Sequence[Stage]) -> list[dict[str, str]]:
    """Map each stage's scores to their columns: the scorer's name, with `_2`, `_3`, ... if it scores again."""
    taken, names = set[str](), list[dict[str, str]]()
    for stage in stages:
        own: dict[str, str] = {}
        for spec in stage.specs:
            name, n = base_name(spec), 1
            while name in taken:
                n += 1
                name = f"{base_name(spec)}_{n}"
            taken.add(name)
            own[base_name(spec)] = name
        if stage.ranks is not None:  # named after the columns of its parts, and so never twice
            own[str(stage.ranks)] = str(stage.ranks.renamed(own))
        names.append(own)
    return names


def assign_filters(
    stages: Sequence[Stage], columns: Sequence[Mapping[str, str]], given: tuple[str, ...] | None, source: DataSource
) -> tuple[list[tuple[str, ...] | None], list[str]]:
    """Assign each given filter to a stage; return them per stage (None: the scorer's default), and those that wait.

    A filter goes to the first stage that has its column: the stage that computes the score, or stage 1 for input
    columns and token counts. A filter on an NLL waits, as only the run shows which stage reads it.

    Raises:
        SettingsError: no stage has the filter's column.
    """
    if not given:
        return [given] * len(stages), []
    found: list[list[str]] = [[] for _ in stages]
    waiting = []
    at = {column: (i, name) for i, own in enumerate(columns) for name, column in own.items()}
    for text in given:
        one = Filter.parse(text)
        if one.column in NLLS:
            waiting.append(text)
        elif one.column in at:
            i, name = at[one.column]
            found[i].append(name + one.text.removeprefix(one.column))
        else:
            one.check([*at, *COUNTS[:-1], *source.columns])
            found[0].append(text)
    return [tuple(texts) or None for texts in found], waiting


def nothing_kept(chosen: SelectResult, *, whole: bool = False) -> DataError:
    """Return the error for a selection that keeps nothing.

    Args:
        chosen: the selection.
        whole: whether it covers the whole data set; the message then names the data set.
    """
    selection = chosen.record["selection"]
    why = ", ".join(f"`{reason}` ({n:,})" for reason, n in list(selection["dropped"].items())[:3])
    of, came = (f"nothing of `{chosen.record['dataset']['source']}`", "") if whole else ("nothing", " that came in")
    return DataError(
        f"{of} is kept, all {selection['examples']:,} examples{came} are dropped: {why}",
        hint=suggest_changes(list(selection["dropped"])),
    )
