"""Conduct an experiment: split the data, choose, train, evaluate, compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import Field

from tithe.data.prompts import read_prompt_set
from tithe.engine.model_source import find_model
from tithe.errors import StoreError, demand
from tithe.extras import versions
from tithe.foreign import demand_shape, read_json
from tithe.lab.evaluate.comparison import holm
from tithe.lab.evaluate.evaluation import pieces_of
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.arm_choices import Choice, Stored, arm_table, choose_all
from tithe.lab.experiment.cells import (
    CELLS,
    DONE,
    TRACKING,
    Cell,
    CellResult,
    cell_result,
    distinct_cells,
    is_finished,
    make_cells,
    prepare,
    read_ended,
    read_spec,
    with_tuples,
)
from tithe.lab.experiment.comparisons import ExperimentResult, add_judge_metrics, compare_arms
from tithe.lab.experiment.experiment_data import Data, make_data
from tithe.lab.experiment.experiment_report import verdict_table, write_report
from tithe.lab.experiment.reporter import looks_caution, plan_lines
from tithe.lab.experiment.settings import ArmSettings, ExperimentSettings, check_judge, prompt_sets
from tithe.lab.experiment.workers import Clock, run_cells, worker_places
from tithe.lab.judge.prompt_answers import AnswerSet
from tithe.lab.tune.settings import TrainingRecipe, TuneSettings
from tithe.lab.tune.trackers import RUNS, Tracking, demand_trackers, log_table
from tithe.lab.tune.train import demand_packages
from tithe.report.charts import library
from tithe.report.reporter import Reporter
from tithe.run.folder import BEFORE, OUTCOME, RecordWriter, has_finished, recorded_run, run_folder, write_json
from tithe.run.run_model import RunModel, open_model, open_renderer
from tithe.run.source import DataSource
from tithe.settings import ScoreSettings

DESIGN, RECORD = "design.json", "experiment.json"
DESIGNED = (  # settings that may not change while an experiment goes on
    *("limit", "split", "holdout_group", "template", "max_length", "truncation", "dtype"),
    *("tasks", "evaluation", "judge", "drop_contaminated"),
)
VERDICTS = "verdicts"  # name of the run that has the table
VERSIONS = ("torch", "transformers", "trl", "peft", "numpy", "scipy", "statsmodels")


def experiment(
    settings: ExperimentSettings,
    folder: Path,
    *,
    overwrite: bool = False,
    plan: bool = False,
    reporter: Reporter | None = None,
) -> ExperimentResult:
    """Conduct an experiment, or resume it.

    Args:
        settings: arms, budgets, seeds, recipe, evaluation.
        folder: for all files: `data/`, `scoring/`, `cells/`, `experiment.json`, the report.
        overwrite: start over if the folder holds an experiment of another design.
        plan: split, choose and look for contamination, but train nothing.
        reporter: gets messages and progress.

    Raises:
        TitheError: the experiment failed; the same call resumes it.
    """
    conduct = Conduct(settings, folder, reporter := reporter or Reporter())
    with run_folder(folder, "-o"), recorded_run(None, reporter, conduct.so_far, name=RECORD, stores="cells") as told:
        told.stored = lambda: sum("evaluation" in one for one in conduct.cells_so_far())
        return conduct.run(told, overwrite=overwrite, plan=plan)


@dataclass
class Conduct:
    """Conducts one experiment in its folder."""

    given: ExperimentSettings
    folder: Path
    reporter: Reporter
    known: dict[str, Any] = field(default_factory=dict, init=False)  # the record so far
    cells: list[Cell] = field(default_factory=list, init=False)
    trackers: tuple[str, ...] = field(default=(), init=False)

    @property
    def project(self) -> str:
        """What the trackers call the experiment."""
        return self.given.project or self.folder.resolve().name

    @cached_property
    def recipe(self) -> TrainingRecipe:
        return TuneSettings.of({"dataset": self.given.dataset, **self.training}).full_recipe()

    @property
    def training(self) -> dict[str, Any]:
        """Settings of `tithe tune` that all cells share."""
        s = self.given
        names = ("model", "template", "truncation", "device", "trust_remote_code", "recipe")
        own = {name: getattr(s, name) for name in names} | s.training
        own |= {} if s.max_length is None else {"max_length": s.max_length}
        own |= {"columns": list(s.columns)} if s.columns else {}
        return own if s.dtype == "auto" else own | {"dtype": s.dtype}

    @cached_property
    def settings(self) -> ExperimentSettings:
        """The settings, with the recipe's `max_length` if none is given."""
        return self.given.model_copy(update={"max_length": self.given.max_length or self.recipe.max_length})

    @cached_property
    def reading(self) -> ScoreSettings:
        """Settings that read the data set as training does."""
        s = self.settings
        return ScoreSettings(
            dataset=s.dataset,
            columns=s.columns,
            model=s.model,
            template=s.template,
            max_length=s.max_length,
            truncation=s.truncation,
            scorer=("perplexity",),
            device=s.device,
            eos=True,
            trust_remote_code=s.trust_remote_code,
        )

    @cached_property
    def source(self) -> DataSource:
        return DataSource.open(self.reading)

    @cached_property
    def model(self) -> RunModel:
        return open_model(self.reading)

    def run(self, told: RecordWriter, *, overwrite: bool, plan: bool) -> ExperimentResult:
        # What can fail early comes first: a training takes hours.
        demand_extras()
        self.trackers = demand_trackers(self.settings.report_to)
        if self.settings.judge is not None:
            check_judge(self.settings.judge, self.settings.model)
        where = worker_places(self.settings.parallel, self.settings.device)
        looks = earlier_looks(self.folder / RECORD, len(self.settings.seeds))
        self.check_design(overwrite)
        if not plan:  # a plan writes no record
            told.begin(self.folder)
        data = make_data(
            self.settings, lambda: open_renderer(self.reading, self.model), self.folder / "data", self.reporter
        )
        self.check_evaluation(data)
        choices = choose_all(self.settings, data, self.folder, self.reporter)
        record = self.known = self.record(data, choices)
        for line in plan_lines(record):
            self.reporter.say(line)
        if plan:
            return ExperimentResult(self.folder, record)
        cells = self.cells = make_cells(choices, self.settings.seeds, base_arm(self.settings.arms))
        self.train(cells, data, where)
        # A cell that shares its training with another one takes over that one's measurements.
        own = {key: cell_result(cell, self.folder) for key, cell in distinct_cells(cells).items()}
        outcomes = [replace(one, cell=cell) for cell in cells if (one := own[cell.key])]
        if self.settings.judge is not None:
            outcomes = add_judge_metrics(outcomes, self.settings, self.folder, self.reporter)
        found = compare_arms(outcomes, self.settings)
        trained = [one.record["training"]["recipe_digest"] for one in outcomes if one.record["training"]]
        record["recipe"] |= {"digest": trained[0]} if trained else {}  # with the dtype that the device decided
        record |= {"results": found.as_dict(), "cells": [cell_facts(one) for one in outcomes]}
        record["earlier_looks"] = looks
        if looks:
            self.reporter.say(f"note: {looks_caution(looks)}")
        result = ExperimentResult(self.folder, record, found, tuple(outcomes))
        write_report(result, self.settings)
        self.log_verdicts(result)
        record |= told.finished()
        write_json(self.folder / RECORD, record)  # last: where it says that all is done, all is there
        return result

    def check_evaluation(self, data: Data) -> None:
        """Check tasks, groups and prompt sets before hours of training.

        Raises:
            TitheError: an unknown or forbidden task, an unreadable file, or a missing column.
        """
        settings = EvaluateSettings.of(with_tuples(self.evaluation(data)))
        for piece in pieces_of(settings, find_model(settings.model), self.reporter):
            piece.check()
        for prompts in prompt_sets(self.settings.judge) if self.settings.judge is not None else ():
            demand(AnswerSet.of(prompts, read_prompt_set(Path(prompts))))  # raises if the file cannot be read

    def check_design(self, overwrite: bool) -> None:
        """Write down what may not change while an experiment goes on; arms, budgets and seeds may be added.

        Raises:
            StoreError: the folder holds an experiment of another design.
        """
        s = self.settings
        design = {
            "dataset": self.source.input_check.digest,
            "model": self.model.fingerprint,
            "holdout": str(s.holdout),
            "recipe": self.recipe.digest(),
            **{name: getattr(s, name) for name in DESIGNED},
            "columns": s.columns or None,  # folders of earlier versions have none
        }
        design = json.loads(json.dumps(design))  # tuples become lists, as in the file it is compared with
        path = self.folder / DESIGN
        if path.exists() and not overwrite:
            hint = "delete the file: it is written again, and cells that are done stay"
            before = read_json(path, StoreError, hint)
            for key, value in design.items():
                if before.get(key) != value:
                    raise StoreError(
                        f"`{self.folder}` holds an experiment with another `{key}`: {before.get(key)}, here {value}",
                        hint="name another folder with `-o`, or start over with `--overwrite`",
                    )
        if overwrite and (self.folder / CELLS).exists():
            shutil.rmtree(self.folder / CELLS)
        write_json(path, design)

    def record(self, data: Data, choices: Mapping[tuple[str, str], Sequence[Choice]]) -> dict[str, Any]:
        return {
            **self.basics(),
            "model": {"name": self.settings.model, "fingerprint": self.model.fingerprint},
            "recipe": {"digest": self.recipe.digest(), **self.recipe.model_dump(mode="json")},
            "data": data.record,
            "arms": arm_table(choices, data.pool, self.settings, self.recipe),
        }

    def basics(self) -> dict[str, Any]:
        return {"settings": self.settings.model_dump(mode="json"), "versions": versions(VERSIONS)}

    def so_far(self) -> dict[str, Any]:
        """Return the record so far."""
        return {**self.basics(), **self.known, "cells": self.cells_so_far()}

    def cells_so_far(self) -> list[dict[str, Any]]:
        """Return how each cell ended that has begun."""
        found = []
        for cell in distinct_cells(self.cells).values():
            record = read_ended(self.folder / CELLS / cell.name)
            if record is not None:
                told = {name: record[name] for name in ("training", "evaluation", "seconds", OUTCOME) if name in record}
                found.append({"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, **told})
        return found

    def train(self, cells: Sequence[Cell], data: Data, where: Sequence[Any]) -> None:
        """Train and evaluate the cells that have not finished."""
        common: dict[str, Any] = {
            "tune": self.training,
            "evaluation": self.evaluation(data),
            "keep_models": self.settings.keep_models,
        }
        if self.settings.judge is not None:
            common["judge"] = self.settings.judge
        if self.trackers:
            common[TRACKING] = {"report_to": list(self.trackers), "project": self.project}
        todo: list[tuple[str, Path]] = []
        weights: dict[str, float] = {}
        for cell in distinct_cells(cells).values():
            own = prepare(cell, data.pool, self.folder, common, self.reporter.say)
            if is_finished(cell, own, read_spec(own)):
                continue
            (own / DONE).unlink(missing_ok=True)  # the record of an unfinished try
            todo.append((cell.name, own))
            # Training takes about three times a forward pass, which evaluation is.
            weights[cell.name] = 3 * cell.examples * self.recipe.num_train_epochs + data.record["held_out"]
        found = len(distinct_cells(cells)) - len(todo)
        if found:
            self.reporter.say(f"{found} of {len(distinct_cells(cells))} cells are done")
        clock = Clock(weights)
        run_cells(todo, where, self.folder / "logs", lambda name, done: self.reporter.say(cell_line(name, done, clock)))

    def log_verdicts(self, result: ExperimentResult) -> None:
        """Log every comparison with its verdict to the trackers, as a run beside those of the trainings."""
        if self.trackers:
            tracking = Tracking(self.trackers, VERDICTS, self.project, self.folder / RUNS / VERDICTS)
            columns, rows = verdict_table(result)
            log_table(tracking, columns, rows, self.reporter.say)

    def evaluation(self, data: Data) -> dict[str, Any]:
        """Return the settings of `tithe evaluate` that all cells share."""
        s = self.settings
        names = ["model", "template", "max_length", "truncation", "device", "dtype", "trust_remote_code"]
        own = {name: getattr(s, name) for name in [*names, "allow_code_execution"]}
        return {
            **own,
            "holdout": str(data.holdout),
            **({"columns": list(data.holdout_columns)} if data.holdout_columns else {}),
            "holdout_group": s.holdout_group,
            "tasks": list(s.tasks),
            "eos": True,
            **s.evaluation,
        }


def base_arm(arms: Sequence[ArmSettings]) -> str:
    """Return the name of the untrained model's arm, which every experiment has, listed or not."""
    asked = next((arm.name for arm in arms if arm.kind == "base"), None)
    taken = {arm.name for arm in arms}
    return asked or next(name for name in chain(["base"], (f"base-{i}" for i in count(2))) if name not in taken)


class StoredSettings(Stored):
    """The settings in `experiment.json`."""

    seeds: list[int]


class StoredExperiment(Stored):
    """`experiment.json`."""

    settings: StoredSettings
    earlier_looks: list[int] = Field(default_factory=list)


def earlier_looks(path: Path, seeds: int) -> list[int]:
    """Return from how many seeds earlier verdicts in this folder were drawn, if from fewer than now."""
    if not path.exists():
        return []
    hint = "delete the file: it is written again, but no longer says from how many seeds verdicts were drawn before"
    found = read_json(path, StoreError, hint)
    before = found if has_finished(found) else found.get(BEFORE)  # an unfinished run drew no verdicts
    if before is None:
        return []
    demand_shape(before, StoredExperiment, path, StoreError, hint)
    looks = {*before.get("earlier_looks", []), len(before["settings"]["seeds"])}
    return sorted(look for look in looks if look < seeds)


def demand_extras() -> None:
    """Check before hours of training that the packages for the final report are installed.

    Raises:
        MissingExtraError: a package is missing.
    """
    demand(holm([1.0]), library("altair"), library("vl_convert"))
    demand_packages()


def cell_line(name: str, done: Mapping[str, Any], clock: Clock) -> str:
    """Return the line for a finished cell."""
    parts = []
    training = done["training"]
    if training is not None:
        parts.append(f"{training['steps']} steps, loss {training['first_loss']:.3f} -> {training['last_loss']:.3f}")
    parts += [f"{one['metric']} {one['mean']:.4f}" for one in done["evaluation"] if one["mean"] is not None]
    return f"{name}: {', '.join(parts)}; {clock.done(name)}"


def cell_facts(one: CellResult) -> dict[str, Any]:
    cell, record = one.cell, one.record
    return {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "training": record["training"]} | {
        "evaluation": record["evaluation"],
        "seconds": record["seconds"],
    }
