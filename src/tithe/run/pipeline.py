"""Select: score, choose, and write what was kept and dropped, in one stage or in several."""

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
from tithe.errors import DataError, SettingsError, TitheError
from tithe.report.reporter import Reporter
from tithe.run.choose import (
    Recipe,
    choose,
    chosen_filters,
    contaminated,
    narrowed,
    outcome,
    own_columns,
    ranking_scorer,
    reasons_by_row,
    way_out,
    with_reasons,
)
from tithe.run.engines import Engines
from tithe.run.folder import (
    DROPPED,
    RECORD,
    SCORES,
    TOKENS,
    Account,
    account,
    check_places,
    inputs_of,
    run_folder,
    sweep,
    write_json,
    write_table,
)
from tithe.run.method import Method, Setup, basics, inherited, residual, set_up
from tithe.run.results import ScoreResult, SelectResult, StageResult
from tithe.run.score import Scoring, check_warmup, warmed_up
from tithe.run.source import Pools, Source
from tithe.run.table import COUNTS, NLLS
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.filters import Filter
from tithe.settings import SelectSettings, check_inherited
from tithe.stages import Stage, base_name, naming, parse_pipeline

FOLDER = "stage-{}"
ELSEWHERE = ("scorer", "preset", "by", "selector", "keep", "residualise")  # said by the stages


@dataclass(frozen=True)
class Job:
    """A stage, ready to be run. A selection without a pipeline is one job without a stage.

    Args:
        stage: what was asked for; None where the settings are all there is.
        settings: as `select` would have them if the stage were all.
        method: its scorers and its selector.
        selector: its own.
        column: what the stage's scores are called in the table of the whole; None where it has none of its own.
        setup: what it would be made of if nothing came before it; what is wrong with it is known by now.
        extra: columns of the input that its filters and selectors read.
    """

    stage: Stage | None
    settings: SelectSettings
    method: Method
    selector: Selector
    column: str | None
    setup: Setup
    extra: Sequence[str]

    @property
    def scores(self) -> bool:
        """Whether it scores, and does not use the scores of the stage before."""
        return self.stage is None or self.stage.scorer is not None

    def budget(self, total: int) -> Budget:
        """Return how much the job keeps.

        Args:
            total: examples of the whole input.
        """
        s = self.settings
        return Budget.parse(s.keep, of=s.keep_of) if self.stage is None else self.stage.spends(total, s.keep_of)


def select(
    settings: SelectSettings,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SelectResult:
    """Score a data set and keep the part of it that a selector takes; in stages, where a pipeline is given.

    - Budgets compound: a share is one of what comes into the stage; with `of all`, of the whole input. Rows and tokens
      are what they are; a stage that asks for more than is left keeps all of it, which is noted.
    - A stage scores what is left, and nothing else; what its scorer learns (neighbours), it learns from that.
    - A stage has its scorer's own filter. A filter given belongs to the first stage that has its column, and stands
      there in the place of the scorer's own. Duplicates, and what is in evaluation files, are dropped in the first
      stage.
    - A stage without a scorer chooses by the scores of the stage before.
    - Answers of all stages are kept together in the run folder, the score table of each in its `stage-N`.

    Args:
        settings: what is scored, how, and what is kept.
        folder: the run folder: scores, dropped records with reasons, run record; None keeps nothing.
        output: where the kept records go.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops the run, with the stage it is about; what was scored before is in the run folder.
    """
    reporter = reporter or Reporter()
    check_places(output, overwrite, settings.dataset, folder, inputs_of(settings))
    if settings.pipeline is None:
        jobs, waiting = [single_job(settings, folder, reporter)], list[str]()
    else:
        jobs, waiting = make_jobs(settings, folder)
    whole = jobs[0].setup.source
    found = contaminated(whole.dataset, settings, reporter)
    with (
        run_folder(folder) as place,
        account(folder, reporter, lambda: basics(settings)) as told,
        closing(Engines(reporter)) as engines,
    ):
        if settings.pipeline is not None:
            clear(place)
        cascade = Cascade(settings, jobs, whole, place, folder, reporter, waiting, found.examples, told, engines)
        result = cascade.run()
        result = replace(result, record=result.record | found.told | told.finished())
        told.record = lambda: result.record
        if folder is not None:
            write_table(folder / SCORES, with_reasons(result))
        if not result.kept:
            write_rest(result, folder)
            raise nothing_kept(result, whole=True)
        if output is None:
            write_rest(result, folder)
        else:  # last: where it is, everything is
            sweep(output)
            write_both(result, folder, output, settings, overwrite)
    return result


def write_rest(result: SelectResult, folder: Path | None) -> None:
    """Write what was dropped, and the record."""
    if folder is not None:
        write_dropped(result.scored.dataset, reasons_by_row(result), folder / DROPPED)
        write_json(folder / RECORD, result.record)


def write_both(
    result: SelectResult, folder: Path | None, output: Path, settings: SelectSettings, overwrite: bool
) -> None:
    """Write what was kept and what was dropped in one reading of the data set; the output's name comes last."""
    if folder is None:
        result.write(output, shape=settings.shape, overwrite=overwrite)
        return
    try:
        with ExitStack() as stack:
            dropped = DroppedRecords(
                stack.enter_context(atomic(folder / DROPPED, overwrite=True)), reasons_by_row(result)
            )

            def finish() -> None:
                stack.close()
                write_json(folder / RECORD, result.record)

            result.write(output, shape=settings.shape, overwrite=overwrite, dropped=dropped, then=finish)
    except TitheError:
        write_rest(result, folder)  # what the output cannot hold is no reason to lose the rest
        raise


def single_job(settings: SelectSettings, folder: Path | None, reporter: Reporter) -> Job:
    """Return the one job of a selection without a pipeline."""
    Budget.parse(settings.keep, of=settings.keep_of)
    selector = plugins.build_selector(settings.selector, inherited(settings))
    method = Method.of(settings, (selector,))
    check_inherited(settings, [*method.scorers.values(), selector])
    by = ranking_scorer(method, settings.by)
    if settings.residualise and by == "length":
        raise SettingsError(
            "`residualise` takes away what length predicts, and `length` ranks", hint="`--by` names another scorer"
        )
    source = Source.open(settings)
    filters = chosen_filters(method, source, settings, by, reporter)
    extra = own_columns(method, source, selector, filters)
    setup = set_up(settings, method=method, source=source, folder=folder)
    check_warmup(setup, folder)
    return Job(None, settings, method, selector, None, setup, extra)


def clear(place: Path) -> None:
    """Take away the results of an earlier run's stages; there may have been more of them."""
    for earlier in place.glob(FOLDER.format("*")):
        for name in (SCORES, TOKENS, DROPPED, RECORD):
            with suppress(FileNotFoundError, NotADirectoryError):
                (earlier / name).unlink()


@dataclass
class Cascade:
    """The stages that are done, and how the next one is.

    Args:
        settings: of the whole run.
        jobs: all stages.
        whole: the data set.
        place: where answers are kept meanwhile.
        folder: the run folder to name in results, None for a scratch one.
        reporter: who listens.
        waiting: filters whose column no stage had yet.
        contaminated: id -> reason, of examples that the first stage drops.
        told: learns how to tell what was done so far.
        engines: hold the model between stages.
        done: the stages so far.
    """

    settings: SelectSettings
    jobs: Sequence[Job]
    whole: Source
    place: Path
    folder: Path | None
    reporter: Reporter
    waiting: list[str]
    contaminated: Mapping[str, str]
    told: Account
    engines: Engines
    done: list[StageResult] = field(default_factory=list)

    def run(self) -> SelectResult:
        """Carry out all stages.

        Raises:
            TitheError: naming the stage, where there are several.
        """
        if self.settings.pipeline is None:
            return self.single(self.jobs[0])
        for job in self.jobs:
            assert job.stage is not None
            with naming(job.stage):
                self.step(job, job.stage)
        for text in self.waiting:
            self.reporter.say(f"note: the filter `{text}` did nothing: no stage reads its column")
        return outcome(self.done, self.settings, self.whole.dataset, self.folder)

    def single(self, job: Job) -> SelectResult:
        """Carry out the one stage of a selection without a pipeline."""
        setup = warmed_up(job.setup, self.folder, self.reporter)
        scored = Scoring(setup, self.engines, self.reporter, self.place, self.told, extra=job.extra).run(self.folder)
        return choose(scored, self.recipe(job, setup, scored, len(scored)))

    def step(self, job: Job, stage: Stage) -> None:
        """Score what is left, and keep a part of it.

        Raises:
            DataError: nothing is kept.
        """
        self.reporter.say(f"{stage.label}:")
        setup = job.setup if not self.done else self.narrowed(job, self.done[-1].chosen.rows())
        with run_folder(self.place / FOLDER.format(stage.number)) as here:
            own = Account(None, self.reporter, dict)
            scoring = Scoring(setup, self.engines, self.reporter, here, own, self.place, job.extra)
            scored = self.scored(job, stage, scoring)
            total = len(self.done[0].chosen.scores) if self.done else len(scored.scores())
            chosen = choose(scored, self.recipe(job, setup, scored, total))
            chosen = replace(chosen, scored=replace(chosen.scored, vectors=None))  # which hold all examples in memory
            write_table(here / SCORES, with_reasons(chosen))
        result = StageResult(stage, job.column, chosen, total)
        self.reporter.say(result.sentence)
        if not chosen.kept:
            raise nothing_kept(chosen)
        if chosen.note:
            self.reporter.say(f"note: {chosen.note}")
        self.done.append(result)

    def narrowed(self, job: Job, places: Mapping[int, Collection[int]]) -> Setup:
        """Return what a later stage is made of: of the data set what is left."""
        source, before = self.whole.part(places), job.setup
        setup = set_up(job.settings, method=job.method, source=source, pools=before.pools, folder=self.folder)
        return replace(setup, notes=[*dict.fromkeys([*before.notes, *setup.notes])])

    def scored(self, job: Job, stage: Stage, scoring: Scoring) -> ScoreResult:
        """Return the stage's own scores, or those of the stage before as far as they are left."""
        if not job.scores:
            bench = scoring.bench
            bench.tidy()
            return replace(
                narrowed(self.done[-1].chosen, scoring.setup.source.dataset, bench.facts), vectors=bench.vectors
            )
        own = scoring.told
        assert own is not None
        self.told.record, self.told.stored = lambda: self.so_far(stage, own), lambda: own.stored()
        return scoring.run(None if self.folder is None else scoring.place)

    def so_far(self, stage: Stage, own: Account) -> dict[str, Any]:
        """Return the record of the stages that are done, and of the one under way."""
        now = {"stage": stage.number, "text": stage.text, **own.record()}
        return basics(self.settings) | {"stages": [*(done.record for done in self.done), now]}

    def recipe(self, job: Job, setup: Setup, scored: ScoreResult, total: int) -> Recipe:
        """Return how this stage chooses; takes the filters that have waited for its columns."""
        method, settings = setup.method, job.settings
        there = {name for name in scored.grown.schema.names if scored.grown.has_values(name)}
        ripe = [text for text in self.waiting if Filter.parse(text).column in there]
        self.waiting = [text for text in self.waiting if text not in ripe]
        if ripe:
            settings = settings.model_copy(update={"drop": (*(settings.drop or ()), *ripe)})
        by = ranking_scorer(method, settings.by)
        silent = Reporter() if job.stage is None else self.reporter  # its note was said when the filters were checked
        filters = chosen_filters(method, setup.source, settings, by, silent)
        return Recipe(
            residual(by) if by in method.residualised else by,
            job.selector,
            job.budget(total),
            filters,
            settings.drop_duplicates,
            {} if self.done else self.contaminated,
        )


def check_settings(settings: SelectSettings) -> None:
    """Refuse settings that a pipeline's stages have for themselves.

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


def make_jobs(settings: SelectSettings, folder: Path | None) -> tuple[list[Job], list[str]]:
    """Return the stages with what they need, and the filters that wait for the first stage that has their column.

    Raises:
        TitheError: what can be known to be wrong before anything is scored, with the stage it is about.
    """
    stages = parse_pipeline(settings.pipeline or "")
    check_settings(settings)
    columns, source, pools = column_names(stages), Source.open(settings), Pools(settings)
    drops, waiting = filters_of(stages, columns, settings.drop, source)
    selectors, used = list[Selector](), list[Any]()
    for stage in stages:
        with naming(stage):
            selectors.append(plugins.build_selector(stage.selector, inherited(settings)))
            if stage.scorer:
                used.append(plugins.build_scorer(stage.scorer, inherited(settings)))
    check_inherited(settings, [*used, *selectors])
    jobs: list[Job] = []
    for i, stage in enumerate(stages):
        own = settings.model_copy(
            update={
                "scorer": (stage.scorer,) if stage.scorer else jobs[-1].settings.scorer,
                "model": stage.model or (settings.model if stage.scorer else jobs[-1].settings.model),
                "selector": stage.selector,
                "keep": stage.budget,
                "drop": drops[i] if stage.scorer else (),
                "drop_duplicates": settings.drop_duplicates and i == 0,
                "drop_contaminated": settings.drop_contaminated if i == 0 else (),
                "pipeline": None,
            }
        )
        with naming(stage):
            method = Method.of(own, (selectors[i],))
            filters = [Filter.parse(text) for text in own.drop or ()]
            extra = own_columns(method, source, selectors[i], filters)
            setup = set_up(own, method=method, source=source, pools=pools, folder=folder)
        if jobs:  # what is odd about the data set is said once
            setup = replace(setup, notes=[note for note in setup.notes if note not in source.dataset.notes])
        jobs.append(Job(stage, own, method, selectors[i], columns.get(i), setup, extra))
    return [replace(job, extra=columns_read(jobs[i:])) for i, job in enumerate(jobs)], waiting


def columns_read(jobs: Sequence[Job]) -> list[str]:
    """Return the columns of the input that the first of these jobs reads, and those that choose by its scores."""
    first, *rest = jobs
    readers = [first, *takewhile(lambda job: not job.scores, rest)]
    return list(dict.fromkeys(name for job in readers for name in job.extra))


def column_names(stages: Sequence[Stage]) -> dict[int, str]:
    """Return place of a stage -> name of its scores: the scorer's, with `_2`, `_3`, ... where it scored before."""
    names: dict[int, str] = {}
    for i, stage in enumerate(stages):
        if stage.scorer is None:
            continue
        name, n = base_name(stage.scorer), 1
        while name in names.values():
            n += 1
            name = f"{base_name(stage.scorer)}_{n}"
        names[i] = name
    return names


def filters_of(
    stages: Sequence[Stage], columns: Mapping[int, str], given: tuple[str, ...] | None, source: Source
) -> tuple[list[tuple[str, ...] | None], list[str]]:
    """Return per stage the filters given that are its own (None: the scorer's own), and those that wait.

    A filter belongs to the first stage that has its column: of a score the one that computes it, of the input and of
    token counts the first of all.

    Raises:
        SettingsError: a filter's column is nowhere to be had.
    """
    if not given:
        return [given] * len(stages), []
    found: list[list[str]] = [[] for _ in stages]
    waiting = []
    at = {name: i for i, name in columns.items()}
    for text in given:
        one = Filter.parse(text)
        if one.column in NLLS:
            waiting.append(text)
        elif one.column in at:
            i = at[one.column]
            found[i].append(base_name(stages[i].scorer or "") + one.text.removeprefix(one.column))
        else:
            one.check([*at, *COUNTS[:-1], *source.columns])
            found[0].append(text)
    return [tuple(texts) or None for texts in found], waiting


def nothing_kept(chosen: SelectResult, *, whole: bool = False) -> DataError:
    """Return the error of a selection that keeps nothing.

    Args:
        chosen: the selection.
        whole: whether it is that of the whole data set, which is then named.
    """
    selection = chosen.record["selection"]
    why = ", ".join(f"`{reason}` ({n:,})" for reason, n in list(selection["dropped"].items())[:3])
    of, came = (f"nothing of `{chosen.record['dataset']['source']}`", "") if whole else ("nothing", " that came in")
    return DataError(
        f"{of} is kept, all {selection['examples']:,} examples{came} are dropped: {why}",
        hint=way_out(list(selection["dropped"])),
    )
