"""An experiment from its settings to its verdicts: split, choose, train, evaluate, compare."""

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

from tithe.data.prompts import prompts_of
from tithe.engine.model_source import find_model
from tithe.errors import StoreError, demand
from tithe.extras import versions
from tithe.foreign import demand_shape, read_json
from tithe.lab.evaluate.comparison import holm
from tithe.lab.evaluate.evaluation import pieces_of
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.arm_choices import Choice, Said, choose_all, table
from tithe.lab.experiment.arm_judging import check_judge, judged, prompt_sets
from tithe.lab.experiment.cells import (
    CELLS,
    DONE,
    Cell,
    Outcome,
    distinct,
    finished,
    make_cells,
    outcome,
    prepare,
    read_ended,
    read_spec,
    restored,
)
from tithe.lab.experiment.comparisons import ExperimentResult, results
from tithe.lab.experiment.experiment_data import Data, make_data
from tithe.lab.experiment.experiment_report import write_report
from tithe.lab.experiment.screen import plan_lines
from tithe.lab.experiment.settings import ArmSettings, ExperimentSettings
from tithe.lab.experiment.workers import Clock, do_all, places
from tithe.lab.judge.judge_loop import Answers
from tithe.lab.tune.recipe import Recipe
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.train import demand_packages
from tithe.report.drawing import library
from tithe.report.reporter import Reporter
from tithe.run.folder import BEFORE, OUTCOME, Account, account, has_finished, run_folder, write_json
from tithe.run.model import Model, open_model, open_renderer
from tithe.run.source import Source
from tithe.settings import ScoreSettings

DESIGN, RECORD = "design.json", "experiment.json"
DESIGNED = (
    *("limit", "split", "holdout_group", "template", "max_length", "truncation", "dtype"),
    *("tasks", "evaluation", "judge", "drop_contaminated"),
)
VERSIONS = ("torch", "transformers", "trl", "peft", "numpy", "scipy", "statsmodels")


def experiment(
    settings: ExperimentSettings,
    folder: Path,
    *,
    overwrite: bool = False,
    plan: bool = False,
    reporter: Reporter | None = None,
) -> ExperimentResult:
    """Conduct an experiment, or go on with it.

    Args:
        settings: arms, budgets, seeds, recipe, evaluation.
        folder: where everything goes: `data/`, `scoring/`, `cells/`, `experiment.json`, the report.
        overwrite: begin again where the folder holds an experiment of another design.
        plan: split, choose and look for contamination, but train nothing.
        reporter: who listens.

    Raises:
        TitheError: whatever stops it; what was done is found again by the same call.
    """
    conduct = Conduct(settings, folder, reporter := reporter or Reporter())
    with run_folder(folder, "-o"), account(None, reporter, conduct.so_far, name=RECORD, stores="cells") as told:
        told.stored = lambda: sum("evaluation" in one for one in conduct.cells_so_far())
        return conduct.all(told, overwrite=overwrite, plan=plan)


@dataclass
class Conduct:
    """One experiment in its folder."""

    given: ExperimentSettings
    folder: Path
    reporter: Reporter
    known: dict[str, Any] = field(default_factory=dict, init=False)  # of the record, so far
    cells: list[Cell] = field(default_factory=list, init=False)

    @cached_property
    def recipe(self) -> Recipe:
        return TuneSettings.of({"dataset": self.given.dataset, **self.training}).full_recipe()

    @property
    def training(self) -> dict[str, Any]:
        """Settings of `tithe tune` that all cells share."""
        s = self.given
        names = ("model", "template", "truncation", "device", "trust_remote_code", "recipe")
        own = {name: getattr(s, name) for name in names} | s.training
        own |= {} if s.max_length is None else {"max_length": s.max_length}
        return own if s.dtype == "auto" else own | {"dtype": s.dtype}

    @cached_property
    def settings(self) -> ExperimentSettings:
        """With the recipe's length where none is given."""
        return self.given.model_copy(update={"max_length": self.given.max_length or self.recipe.max_length})

    @cached_property
    def reading(self) -> ScoreSettings:
        """How training reads the data set."""
        s = self.settings
        return ScoreSettings(
            dataset=s.dataset,
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
    def source(self) -> Source:
        return Source.open(self.reading)

    @cached_property
    def model(self) -> Model:
        return open_model(self.reading)

    def all(self, told: Account, *, overwrite: bool, plan: bool) -> ExperimentResult:
        demand_extras()
        if self.settings.judge is not None:
            check_judge(self.settings.judge, self.settings.model)
        where = places(self.settings.parallel, self.settings.device)
        looks = earlier_looks(self.folder / RECORD, len(self.settings.seeds))
        self.keep_design(overwrite)
        if not plan:  # which writes no record
            told.begin(self.folder)
        data = make_data(
            self.settings, lambda: open_renderer(self.reading, self.model), self.folder / "data", self.reporter
        )
        self.check_evaluation(data)
        choices = choose_all(self.settings, data, self.folder, self.reporter)
        record = self.known = self.record(data, choices)
        self.say_plan(record)
        if plan:
            return ExperimentResult(self.folder, record)
        cells = self.cells = make_cells(choices, self.settings.seeds, base_arm(self.settings.arms))
        self.train(cells, data, where)
        own = {key: outcome(cell, self.folder) for key, cell in distinct(cells).items()}
        outcomes = [replace(one, cell=cell) for cell in cells if (one := own[cell.key])]
        if self.settings.judge is not None:
            outcomes = judged(outcomes, self.settings, self.folder, self.reporter)
        found = results(outcomes, self.settings)
        trained = [one.record["training"]["recipe_digest"] for one in outcomes if one.record["training"]]
        record["recipe"] |= {"digest": trained[0]} if trained else {}  # with the dtype that the device decided
        record |= {"results": found.as_dict(), "cells": [brief(one) for one in outcomes]}
        record["earlier_looks"] = looks
        if looks:
            self.reporter.say(
                f"note: verdicts were drawn here from {', '.join(map(str, looks))} seeds before; adding some after a "
                "look makes `better` likelier by chance alone"
            )
        result = ExperimentResult(self.folder, record, found, tuple(outcomes))
        write_report(result, self.settings)
        record |= told.finished()
        write_json(self.folder / RECORD, record)  # last: where it says that all is done, all is there
        return result

    def check_evaluation(self, data: Data) -> None:
        """Raise what is wrong with tasks, groups and prompt sets before hours of training.

        Raises:
            TitheError: a task that is not there or not allowed, a file that cannot be read, a column that is missing.
        """
        settings = EvaluateSettings.of(restored(self.evaluation(data)))
        for piece in pieces_of(settings, find_model(settings.model), self.reporter):
            piece.check()
        for prompts in prompt_sets(self.settings.judge) if self.settings.judge is not None else ():
            assert Answers.of(prompts, prompts_of(Path(prompts)))

    def keep_design(self, overwrite: bool) -> None:
        """What may not change while an experiment goes on; arms, budgets and seeds may be added.

        Raises:
            StoreError: the folder holds another one.
        """
        s = self.settings
        design = {
            "dataset": self.source.input_check.digest,
            "model": self.model.fingerprint,
            "holdout": str(s.holdout),
            "recipe": self.recipe.digest(),
            **{name: getattr(s, name) for name in DESIGNED},
        }
        design = json.loads(json.dumps(design))
        path = self.folder / DESIGN
        if path.exists() and not overwrite:
            hint = "delete the file: it is written again, and cells that are done stay"
            before = read_json(path, StoreError, hint)
            for key, value in design.items():
                if before.get(key) != value:
                    raise StoreError(
                        f"`{self.folder}` holds an experiment with another `{key}`: {before.get(key)}, here {value}",
                        hint="name another folder with `-o`, or `--overwrite` begins again",
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
            "arms": table(choices, data.pool, self.settings, self.recipe),
        }

    def basics(self) -> dict[str, Any]:
        return {"settings": self.settings.model_dump(mode="json"), "versions": versions(VERSIONS)}

    def so_far(self) -> dict[str, Any]:
        """Return the record of what was done by now."""
        return {**self.basics(), **self.known, "cells": self.cells_so_far()}

    def cells_so_far(self) -> list[dict[str, Any]]:
        """Return how each cell ended that was begun."""
        found = []
        for cell in distinct(self.cells).values():
            record = read_ended(self.folder / CELLS / cell.name)
            if record is not None:
                told = {name: record[name] for name in ("training", "evaluation", "seconds", OUTCOME) if name in record}
                found.append({"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, **told})
        return found

    def say_plan(self, record: Mapping[str, Any]) -> None:
        for line in plan_lines(record):
            self.reporter.say(line)

    def train(self, cells: Sequence[Cell], data: Data, where: Sequence[Any]) -> None:
        """Do the cells that are not done."""
        common: dict[str, Any] = {
            "tune": self.training,
            "evaluation": self.evaluation(data),
            "keep_models": self.settings.keep_models,
        }
        if self.settings.judge is not None:
            common["judge"] = self.settings.judge
        todo: list[tuple[str, Path]] = []
        weights: dict[str, float] = {}
        for cell in distinct(cells).values():
            own = prepare(cell, data.pool, self.folder, common, self.reporter.say)
            if finished(cell, own, read_spec(own)):
                continue
            (own / DONE).unlink(missing_ok=True)
            todo.append((cell.name, own))
            weights[cell.name] = 3 * cell.examples * self.recipe.num_train_epochs + data.record["held_out"]
        found = len(distinct(cells)) - len(todo)
        if found:
            self.reporter.say(f"{found} of {len(distinct(cells))} cells are done")
        clock = Clock(weights)
        do_all(todo, where, self.folder / "logs", lambda name, done: self.reporter.say(ended(name, done, clock)))

    def evaluation(self, data: Data) -> dict[str, Any]:
        """Settings of `tithe evaluate` that all cells share."""
        s = self.settings
        names = ["model", "template", "max_length", "truncation", "device", "dtype", "trust_remote_code"]
        own = {name: getattr(s, name) for name in [*names, "allow_code_execution"]}
        return {
            **own,
            "holdout": str(data.holdout),
            "holdout_group": s.holdout_group,
            "tasks": list(s.tasks),
            "eos": True,
            **s.evaluation,
        }


def base_arm(arms: Sequence[ArmSettings]) -> str:
    """Return the name of the untrained model's arm, which every experiment measures, asked for or not."""
    asked = next((arm.name for arm in arms if arm.kind == "base"), None)
    taken = {arm.name for arm in arms}
    return asked or next(name for name in chain(["base"], (f"base-{i}" for i in count(2))) if name not in taken)


class SettingsSaid(Said):
    """Of the settings in `experiment.json`."""

    seeds: list[int]


class RecordSaid(Said):
    """Of `experiment.json`."""

    settings: SettingsSaid
    earlier_looks: list[int] = Field(default_factory=list)


def earlier_looks(path: Path, seeds: int) -> list[int]:
    """From how many seeds verdicts were drawn in this folder before, where it was from fewer."""
    if not path.exists():
        return []
    hint = "delete the file: it is written again, but no longer says from how many seeds verdicts were drawn before"
    found = read_json(path, StoreError, hint)
    before = found if has_finished(found) else found.get(BEFORE)  # a run that did not come to its end drew none
    if before is None:
        return []
    demand_shape(before, RecordSaid, path, StoreError, hint)
    looks = {*before.get("earlier_looks", []), len(before["settings"]["seeds"])}
    return sorted(look for look in looks if look < seeds)


def demand_extras() -> None:
    """What the end needs is asked for before hours of training.

    Raises:
        MissingExtraError: a package is not installed.
    """
    demand(holm([1.0]), library("altair"), library("vl_convert"))
    demand_packages()


def ended(name: str, done: Mapping[str, Any], clock: Clock) -> str:
    """A line for a cell that is done."""
    parts = []
    training = done["training"]
    if training is not None:
        parts.append(f"{training['steps']} steps, loss {training['first_loss']:.3f} -> {training['last_loss']:.3f}")
    parts += [f"{one['metric']} {one['mean']:.4f}" for one in done["evaluation"] if one["mean"] is not None]
    return f"{name}: {', '.join(parts)}; {clock.done(name)}"


def brief(one: Outcome) -> dict[str, Any]:
    cell, record = one.cell, one.record
    return {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "training": record["training"]} | {
        "evaluation": record["evaluation"],
        "seconds": record["seconds"],
    }
