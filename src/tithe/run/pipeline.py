"""Several selections in a row, each of what the one before left: `superfiltering:20% -> miwv:5%`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tithe.config import SelectSettings
from tithe.errors import DataError
from tithe.planner import Cost
from tithe.run.account import Account, account
from tithe.run.bench import Bench
from tithe.run.folder import DROPPED, RECORD, SCORES, TOKENS, run_folder, sweep, write_json, write_table
from tithe.run.jobs import Garage, Job, StageParts, check_job, check_settings, columns_read, make_jobs
from tithe.run.outcome import PipelineResult, StageResult, narrowed, outcome
from tithe.run.results import ScoreResult, SelectResult
from tithe.run.score import make_runner, score_in
from tithe.run.select import (
    Recipe,
    choose,
    chosen_filters,
    contaminated,
    ranking_scorer,
    way_out,
    with_reasons,
    write_dropped,
)
from tithe.run.setup import Parts
from tithe.run.stages import naming, parse_pipeline
from tithe.run.talk import Talk
from tithe.selectors.filters import Filter

FOLDER = "stage-{}"


def select_in_stages(
    settings: SelectSettings, *, folder: Path | None, output: Path | None, overwrite: bool, talk: Talk
) -> PipelineResult:
    """Carry out `settings.pipeline`; otherwise as `select`, which see.

    - Budgets compound: a share is one of what comes into the stage; with `of all`, of the whole input. Rows and tokens
      are what they are; a stage that asks for more than is left keeps all of it, which is noted.
    - A stage scores what is left, and nothing else; what its scorer learns (neighbours), it learns from that.
    - A stage has its scorer's own filter. A filter given belongs to the first stage that has its column, and stands
      there in the place of the scorer's own. Duplicates, and what is in evaluation files, are dropped in the first
      stage.
    - A stage without a scorer chooses by the scores of the stage before.
    - Answers of all stages are kept together in the run folder, the score table of each in its `stage-N`.

    Raises:
        TitheError: whatever stops the run, with the stage it is about; what was scored before is in the run folder.
    """
    stages = parse_pipeline(settings.pipeline or "")
    check_settings(settings)
    whole = Parts(settings)
    jobs, waiting = make_jobs(stages, settings, whole)
    for job in jobs:
        with naming(job.stage):
            check_job(job, whole, folder)
    found = contaminated(whole.dataset, settings, talk)
    with run_folder(folder) as place, account(folder, talk, whole.basics) as told:
        clear(place)
        cascade = Cascade(whole, place, folder, talk, waiting, found.examples, told)
        for job in jobs:
            with naming(job.stage):
                cascade.step(job)
        for text in cascade.waiting:
            talk.say(f"note: the filter `{text}` did nothing: no stage reads its column")
        result = outcome(cascade.done, settings, whole, folder)
        result = replace(result, record=result.record | found.told | told.finished())
        told.record = lambda: result.record
        if folder is not None:
            write_table(folder / SCORES, with_reasons(result))
            write_dropped(result, folder)
            write_json(folder / RECORD, result.record)
        if output is not None:  # last: where it is, everything is
            sweep(output)
            result.write(output, shape=settings.shape, overwrite=overwrite)
    return result


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
        whole: parts of the whole run.
        place: where answers are kept meanwhile.
        folder: the run folder to name in results, None for a scratch one.
        talk: who listens.
        waiting: filters whose column no stage had yet.
        contaminated: id -> reason, of examples that the first stage drops.
        told: learns how to tell what was done so far.
        done: the stages so far.
    """

    whole: Parts
    place: Path
    folder: Path | None
    talk: Talk
    waiting: list[str]
    contaminated: Mapping[str, str]
    told: Account
    done: list[StageResult] = field(default_factory=list)
    garage: Garage = field(default_factory=Garage)

    def step(self, job: Job) -> None:
        """Score what is left, and keep a part of it.

        Raises:
            DataError: nothing is kept.
        """
        self.talk.say(f"{job.stage.label}:")
        places = self.done[-1].chosen.rows() if self.done else None
        parts = StageParts(
            job.settings,
            talk=self.talk,
            selectors=[job.selector],
            whole=self.whole,
            garage=self.garage,
            answers=self.place,
            places=places,
        )
        name = FOLDER.format(job.stage.number)
        with run_folder(self.place / name) as here:
            scored = self.scored(job, parts, here)
            total = len(self.done[0].chosen.scores) if self.done else len(scored.scores())
            chosen = choose(scored, self.recipe(job, parts, scored, total))
            chosen = replace(chosen, scored=replace(chosen.scored, vectors=None))  # which hold all examples in memory
            write_table(here / SCORES, with_reasons(chosen))
        parts.__dict__.pop("engine", None)  # the garage has it
        result = StageResult(job.stage, job.column, chosen, total)
        self.talk.say(result.sentence)
        if not chosen.kept:
            raise nothing_kept(chosen)
        if chosen.note:
            self.talk.say(f"note: {chosen.note}")
        self.done.append(result)

    def scored(self, job: Job, parts: StageParts, here: Path) -> ScoreResult:
        """The stage's own scores, or those of the stage before as far as they are left."""
        if job.stage.scorer is None:
            bench = Bench(parts, here, make_runner(parts, here, self.talk), Cost())
            bench.tidy()
            return replace(narrowed(self.done[-1].chosen, parts.dataset, bench.facts), vectors=bench.vectors)
        folder, own = None if self.folder is None else here, Account(None, self.talk, dict)
        self.told.record, self.told.stored = lambda: self.so_far(job, own), lambda: own.stored()
        return score_in(here, parts, self.talk, folder=folder, extra=columns_read(job, parts, job.readers), told=own)

    def so_far(self, job: Job, own: Account) -> dict[str, Any]:
        """Return the record of the stages that are done, and of the one under way."""
        now = {"stage": job.stage.number, "text": job.stage.text, **own.record()}
        return self.whole.basics() | {"stages": [*(done.record for done in self.done), now]}

    def recipe(self, job: Job, parts: StageParts, scored: ScoreResult, total: int) -> Recipe:
        """How this stage chooses; takes the filters that have waited for its columns."""
        there = {name for name, column in scored.grown.columns.items() if any(value is not None for value in column)}
        ripe = [text for text in self.waiting if Filter.parse(text).column in there]
        self.waiting = [text for text in self.waiting if text not in ripe]
        settings = job.settings
        if ripe:
            settings = settings.model_copy(update={"drop": (*(settings.drop or ()), *ripe)})
        by = ranking_scorer(parts, None)
        filters = chosen_filters(parts, settings, by, self.talk)
        budget = job.stage.spends(total, settings.keep_of)
        contaminated = {} if self.done else self.contaminated
        return Recipe(by, job.selector, budget, filters, settings.drop_duplicates, contaminated)


def nothing_kept(chosen: SelectResult) -> DataError:
    selection = chosen.record["selection"]
    why = ", ".join(f"`{reason}` ({n:,})" for reason, n in list(selection["dropped"].items())[:3])
    return DataError(
        f"nothing is kept, all {selection['examples']:,} examples that came in are dropped: {why}",
        hint=way_out(list(selection["dropped"])),
    )
