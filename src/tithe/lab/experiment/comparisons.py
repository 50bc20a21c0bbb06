"""Compare the arms: a judge's reviews of their answers, means over seeds, and corrected tests by family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tithe.data.prompts import read_answers
from tithe.errors import StoreError
from tithe.lab.evaluate.comparison import Comparison, compare, corrected
from tithe.lab.evaluate.measured import Measured
from tithe.lab.experiment.cells import CELLS, CellResult, answers_file
from tithe.lab.experiment.settings import ALL, ExperimentSettings, judge_settings, prompt_sets
from tithe.lab.judge import pairwise
from tithe.lab.judge.prompt_answers import AnswerSet
from tithe.report.reporter import Reporter

UNBUDGETED = "-"  # budget of the untrained model
Runs = Mapping[tuple[str, str], Sequence[Measured]]  # (arm, budget) -> one per seed
UNTRAINED, AGAINST = "untrained", " against "  # for budgets that differ: `5% against 100%`
REVIEWS = "reviews"
PAGE, TABLE, PLOTS = "report.html", "comparisons.csv", "plots"


@dataclass(frozen=True)
class Mean:
    """One metric of one arm at one budget.

    Args:
        metric: its name.
        arm: name.
        budget: as written.
        mean: over seeds and items.
        by_seed: means over items.
        items: how many have a value, in the first seed.
        problems: how many have none in some seed.
        unit: of the means.
    """

    metric: str
    arm: str
    budget: str
    mean: float
    by_seed: tuple[float, ...]
    items: int
    problems: int
    unit: str


@dataclass(frozen=True)
class Results:
    """Means and comparisons of an experiment.

    Args:
        means: of every metric, arm and budget.
        against: arms against the reference arm, corrected together for each metric.
        groups: arms against the reference arm in each group of items, corrected over all groups of a metric.
        full: arms against the full set.
        references: the full set and the untrained model against the reference arm.
    """

    means: tuple[Mean, ...]
    against: tuple[Comparison, ...]
    groups: tuple[Comparison, ...]
    full: tuple[Comparison, ...]
    references: tuple[Comparison, ...]

    def as_dict(self) -> dict[str, Any]:
        families = ("against", "groups", "full", "references")
        found: dict[str, Any] = {name: [one.as_dict() for one in getattr(self, name)] for name in families}
        return {"means": [without_nan(vars(one)) for one in self.means], **without_nan(found)}


def without_nan(value: Any) -> Any:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value  # NaN is not equal to itself


def compare_arms(outcomes: Sequence[CellResult], settings: ExperimentSettings) -> Results:
    """Compare the arms on every metric.

    Raises:
        StoreError: the cells were trained with different recipes.
    """
    demand_one_recipe(outcomes)
    outcomes = order_by_budget(outcomes, settings)
    metrics = list(dict.fromkeys(one.metric for outcome in outcomes for one in outcome.measured))
    parts = [compare_metric(metric, runs_of(metric, outcomes, settings), settings) for metric in metrics]
    return Results(*(tuple(one for part in parts for one in getattr(part, each.name)) for each in fields(Results)))


def demand_one_recipe(outcomes: Sequence[CellResult]) -> None:
    """Refuse cells of different recipes: the comparison would be of recipes instead of data."""
    digests: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.record["training"] is not None:
            digests.setdefault(outcome.record["training"]["recipe_digest"], outcome.cell.name)
    if len(digests) > 1:
        told = ", ".join(f"`{name}` by {digest}" for digest, name in digests.items())
        raise StoreError(
            f"not all cells were trained by one recipe: {told}", hint="`--overwrite` does the others again"
        )


def runs_of(metric: str, outcomes: Sequence[CellResult], settings: ExperimentSettings) -> Runs:
    """Collect one measurement per seed for each arm and budget; the untrained model's counts for every seed."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for outcome in outcomes:
        one = next((m for m in outcome.measured if m.metric == metric), None)
        if one is None:  # a judge compares nothing but arms with the reference arm
            continue
        # The untrained model has no seed: its one measurement is paired with every seed of the arms.
        times = len(settings.seeds) if outcome.cell.seed is None else 1
        found.setdefault((outcome.cell.arm, outcome.cell.budget or UNBUDGETED), []).extend([one] * times)
    return found


def order_by_budget(outcomes: Sequence[CellResult], settings: ExperimentSettings) -> list[CellResult]:
    """Sort results by budget, in the order the settings name them; those without a budget come first."""
    places = {budget: place for place, budget in enumerate(settings.budgets)}
    return sorted(outcomes, key=lambda one: places.get(str(one.cell.budget), -1))


def compare_metric(metric: str, runs: Runs, settings: ExperimentSettings) -> Results:
    """Compare the arms on one metric, at the budgets that the reference arm has."""
    first = next(iter(runs.values()))[0]
    base = settings.against
    budgets = [budget for arm, budget in runs if arm == base]
    arms = [arm.name for arm in settings.arms if arm.budgeted and arm.name != base]
    pairs = [((arm, budget), (base, budget)) for budget in budgets for arm in arms if (arm, budget) in runs]
    whole = [key for key in runs if key[1] in (ALL, UNBUDGETED)]
    full = [key for key in whole if key[1] == ALL]
    groups = sorted(set(first.groups))
    # Each family is corrected by itself, so that adding references does not weaken the verdicts on the arms.
    return Results(
        means=tuple(mean_of(metric, key, found, first.unit) for key, found in runs.items()),
        against=compare_pairs(pairs, runs),
        groups=compare_pairs(pairs, runs, groups) if groups else (),
        full=compare_pairs([(key, one) for one in full for key in runs if key[1] in budgets], runs),
        references=compare_pairs([(one, (base, budget)) for budget in budgets for one in whole], runs),
    )


def compare_pairs(
    pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], runs: Runs, groups: Sequence[str | None] = (None,)
) -> tuple[Comparison, ...]:
    """Compare the first of each pair with the second, and correct all p values together."""
    made = []
    for one, other in pairs:
        budget = one[1] if one[1] == other[1] else both_budgets(one[1], other[1])
        for group in groups:
            made.append(compare(runs[one], runs[other], names=(one[0], other[0]), budget=budget, group=group))
    return tuple(corrected(made))


def both_budgets(budget: str, other: str) -> str:
    """Name two budgets that are compared."""
    return f"{UNTRAINED if budget == UNBUDGETED else budget}{AGAINST}{other}"


def mean_of(metric: str, key: tuple[str, str], found: Sequence[Measured], unit: str) -> Mean:
    by_seed = tuple(one.mean for one in found)
    problems = len({item for one in found for item in one.problems})
    return Mean(metric, *key, float(np.mean(by_seed)), by_seed, len(found[0].items), problems, unit)


@dataclass(frozen=True)
class ExperimentResult:
    """The result of an experiment.

    Args:
        folder: that holds its files.
        record: as in `experiment.json`.
        results: means and comparisons; None if nothing was trained.
        outcomes: results of the cells.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)
    results: Results | None = field(default=None, repr=False)
    outcomes: tuple[CellResult, ...] = field(default=(), repr=False)


def add_judge_metrics(
    outcomes: Sequence[CellResult], settings: ExperimentSettings, folder: Path, reporter: Reporter
) -> list[CellResult]:
    """Add a metric `judge <set>`: +1, 0 or -1 per prompt against the reference arm, whose own is 0 everywhere.

    Raises:
        TitheError: the judge failed; the reviews made so far are kept.
    """
    assert settings.judge is not None
    known = {(one.cell.arm, one.cell.budget, one.cell.seed): one for one in outcomes}
    arms = [arm.name for arm in settings.arms if arm.budgeted]
    found = []
    for one in outcomes:
        other = known.get((settings.against, one.cell.budget, one.cell.seed))
        if one.cell.arm not in arms or other is None:
            found.append(one)
            continue
        sets = prompt_sets(settings.judge)
        more = [judge_answers(one, other, prompts, settings, folder, reporter) for prompts in sets]
        found.append(replace(one, measured=(*one.measured, *more)))
    return found


def judge_answers(
    one: CellResult, other: CellResult, prompts: str, settings: ExperimentSettings, folder: Path, reporter: Reporter
) -> Measured:
    """Let the judge compare two models' answers to one prompt set."""
    assert settings.judge is not None
    own, name = folder / CELLS / one.trained, Path(prompts).stem
    if one.cell.arm == settings.against:
        return all_ties(answers_file(own, prompts), name)
    theirs = folder / CELLS / other.trained
    output = folder / REVIEWS / f"{one.cell.name}-{name}.jsonl"
    output.parent.mkdir(exist_ok=True)
    reporter.say(f"{one.cell.name} against {other.cell.name}, prompts of {name}:")
    a, b = answers_file(own, prompts), answers_file(theirs, prompts)
    return pairwise.compare(
        judge_settings(settings.judge, name), a, b, output, overwrite=True, reporter=reporter
    ).measured


def all_ties(answers: Path, name: str) -> Measured:
    """Return a tie for every prompt: the reference arm against itself."""
    items = tuple(AnswerSet.of(str(answers), read_answers(answers)).examples)
    return Measured(f"judge {name}", "number", "win - loss", True, items, np.zeros(len(items)))
