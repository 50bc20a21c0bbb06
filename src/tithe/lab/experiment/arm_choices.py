"""Choose the examples that each arm trains on; a choice is reused from disk while its settings stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from tithe.data.dataset import open_dataset
from tithe.errors import DataError, SettingsError, StoreError, TitheError
from tithe.foreign import foreign, read_json
from tithe.lab.experiment.experiment_data import Data, Pool
from tithe.lab.experiment.settings import ALL, ArmSettings, ExperimentSettings
from tithe.lab.tune.optimiser_steps import steps_in_all
from tithe.lab.tune.settings import TrainingRecipe
from tithe.records import Example, Scores
from tithe.report.reporter import Reporter
from tithe.run.folder import write_json
from tithe.run.pipeline import select
from tithe.selectors.budget import Budget
from tithe.settings import SelectSettings, with_preset

BINS = 20  # quantile bins of response length, within which a length-matched arm draws
Choices: TypeAlias = "dict[tuple[str, str], list[Choice]]"
SCORING, CHOICES = "scoring", "choices"


class Stored(BaseModel):
    """Fields that a JSON file of an experiment must have; it may have more."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class Choice:
    """The examples that one training sees.

    Args:
        arm: name.
        budget: as it was written; `100%` for the full set.
        seed: None if all seeds train on the same examples.
        places: indices into the pool, ascending.
    """

    arm: str
    budget: str
    seed: int | None
    places: tuple[int, ...]


def budget_rows(pool: Pool, budget: str) -> int | None:
    """Return the number of rows a budget allows; None if it counts tokens."""
    return Budget.parse(budget).rows(len(pool), len(pool))


def select_arm(
    arm: ArmSettings, budget: str, pool: Pool, settings: ExperimentSettings, folder: Path, reporter: Reporter
) -> Choice:
    """Select as `tithe select` does; all arms share one run folder, so that no answer is computed twice.

    Raises:
        TitheError: the selection failed (the message names the arm), or chose fewer examples than the budget.
    """
    try:
        result = select(selection_settings(arm, budget, pool, settings), folder=folder, reporter=reporter)
    except TitheError as error:
        raise type(error)(f"arm `{arm.name}` at {budget}: {error}", hint=error.hint) from error
    return demand_full_budget(arm, Choice(arm.name, budget, None, places_of(set(result.kept), pool)), pool)


def selection_settings(arm: ArmSettings, budget: str, pool: Pool, settings: ExperimentSettings) -> SelectSettings:
    """Merge the arm's own settings over those that all arms share."""
    common: dict[str, Any] = {
        "dataset": str(pool.path),
        "columns": pool.columns,
        "model": settings.model,
        "template": settings.template,
        "device": settings.device,
        "trust_remote_code": settings.trust_remote_code,
        "max_length": settings.max_length,
        "truncation": settings.truncation if settings.truncation == "prompt" else None,
    }
    if "preset" in arm.select:  # a preset brings its own template and length
        common = {key: value for key, value in common.items() if key not in ("template", "max_length", "truncation")}
    return with_preset(SelectSettings, {**common, **settings.scoring, **arm.select, "keep": budget})


def places_of(ids: set[str], pool: Pool) -> tuple[int, ...]:
    return tuple(i for i, id_ in enumerate(pool.ids) if id_ in ids)


def demand_full_budget(arm: ArmSettings, choice: Choice, pool: Pool) -> Choice:
    """Return the choice; refuse one with fewer examples than the other arms have at this budget.

    Raises:
        SettingsError: it has fewer, and the arm does not set `allow_fewer`.
    """
    rows = budget_rows(pool, choice.budget)
    if not choice.places:
        raise SettingsError(f"arm `{arm.name}` selected nothing at {choice.budget}", hint="check its filters")
    # A budget in tokens has no row count: its arms may differ in examples.
    if rows is not None and len(choice.places) < rows and not arm.allow_fewer:
        raise SettingsError(
            f"arm `{arm.name}` selected {len(choice.places):,} examples at {choice.budget}, the others have "
            f"{rows:,}: a smaller set would be compared with a larger one",
            hint="a smaller budget, `drop: []` for the arm, or `allow_fewer: true` to compare them anyway",
        )
    return choice


def draw_random(name: str, budget: str, seed: int, pool: Pool) -> Choice:
    """Draw examples uniformly."""
    # The second number keeps this stream apart from that of `like_lengths` under the same seed.
    order = np.random.default_rng([seed, 1]).permutation(len(pool))
    scores = Scores(pool.ids, np.zeros(len(pool)), columns={"response_tokens": pool.response_tokens}, by=name)
    taken = Budget.parse(budget).take(scores, order)
    return Choice(name, budget, seed, tuple(sorted(taken.tolist())))


def draw_like_lengths(name: str, like: Choice, seed: int, pool: Pool) -> Choice:
    """Draw at random, with as many examples from each length bin as another arm has."""
    rng = np.random.default_rng([seed, 2])
    # Many equal lengths give equal quantiles: `unique` merges their bins.
    edges = np.unique(np.quantile(pool.response_tokens, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, pool.response_tokens, side="right")
    counts = np.bincount(bins[list(like.places)], minlength=len(edges) + 1)
    taken: list[int] = []
    for number, count in enumerate(counts.tolist()):
        taken += rng.choice(np.flatnonzero(bins == number), size=count, replace=False).tolist()
    return Choice(name, like.budget, seed, tuple(sorted(taken)))


def read_arm_file(arm: ArmSettings, budget: str, pool: Pool, held_out: Collection[str]) -> Choice:
    """Read records that were chosen elsewhere, and find them in the pool by their text.

    Args:
        arm: names the file; `{budget}` in it stands for the budget.
        budget: that the file must fill.
        pool: that holds the records.
        held_out: ids of the held-out examples.

    Raises:
        DataError: some of them are not in the pool, or are held out.
    """
    assert arm.file is not None
    path = arm.file.replace("{budget}", budget)
    opened = open_dataset(path, columns=pool.columns, beside=True)
    ids = {item.id for item in opened if isinstance(item, Example)}
    strange = ids - set(pool.ids)
    if strange:
        held = sum(id_ in held_out for id_ in strange)
        raise DataError(
            f"arm `{arm.name}`: {len(strange):,} of {len(ids):,} examples of `{path}` are not in the pool, "
            f"{held:,} of them are held out",
            hint="select from `data/pool.jsonl` of the experiment's folder",
        )
    return demand_full_budget(arm, Choice(arm.name, budget, None, places_of(ids, pool)), pool)


def length_facts(choice: Choice, pool: Pool) -> dict[str, float]:
    """Count the chosen examples and their response tokens."""
    tokens = pool.response_tokens[list(choice.places)]
    return {"examples": len(tokens), "response_tokens": int(tokens.sum()), "median_length": float(np.median(tokens))}


def overlap(one: Choice, other: Choice) -> float:
    """Return the share of the first choice that is in the second, too."""
    return len(set(one.places) & set(other.places)) / len(one.places)


def full_choice(name: str, pool: Pool) -> Choice:
    return Choice(name, ALL, None, tuple(range(len(pool))))


def choice_of_seed(choices: Sequence[Choice], seed: int) -> Choice:
    """Return the choice that a seed trains on."""
    return next(one for one in choices if one.seed in (None, seed))


def choose_all(settings: ExperimentSettings, data: Data, folder: Path, reporter: Reporter) -> Choices:
    """Choose the examples of every arm at every budget.

    At a budget of 100 % all arms are the full set, which is trained on once.

    Returns:
        (arm, budget) -> one choice for all seeds, or one for each; in the order of the arms.

    Raises:
        TitheError: a budget exceeds the pool, or an arm's selection fails.
    """
    pool = data.pool
    for budget in settings.budgets:
        rows, tokens = budget_rows(pool, budget), int(pool.response_tokens.sum())
        if rows is None and Budget.parse(budget).amount >= tokens:
            raise SettingsError(
                f"the budget `{budget}` is not less than the pool, which has {tokens:,} response tokens",
                hint=f"`{ALL}` takes the whole pool",
            )
        if rows is not None and rows > len(pool):
            raise SettingsError(
                f"the budget `{budget}` is more than the pool, which has {len(pool):,} examples",
                hint=f"`{ALL}` takes the whole pool",
            )
    # Budgets that take the whole pool leave nothing to choose; all arms would be the same.
    partial = [budget for budget in settings.budgets if budget_rows(pool, budget) != len(pool)]
    found: Choices = {}
    # A `random-like` arm needs the choice it matches, so these come last.
    for arm in sorted(settings.arms, key=lambda arm: arm.kind == "random-like"):
        for budget in partial if arm.budgeted else ():
            found[arm.name, budget] = choose_arm(arm, budget, settings, data, found, folder, reporter)
    full = next((arm.name for arm in settings.arms if arm.kind == "full"), None)
    if full or len(partial) < len(settings.budgets):
        name = full or "full"
        found[name, ALL] = [full_choice(name, pool)]
    names = [arm.name for arm in settings.arms]
    return dict(sorted(found.items(), key=lambda item: names.index(item[0][0]) if item[0][0] in names else len(names)))


def choose_arm(
    arm: ArmSettings,
    budget: str,
    settings: ExperimentSettings,
    data: Data,
    found: Mapping[tuple[str, str], Sequence[Choice]],
    folder: Path,
    reporter: Reporter,
) -> list[Choice]:
    """Choose one arm's examples at one budget."""
    pool = data.pool
    if arm.kind == "random":
        return [draw_random(arm.name, budget, seed, pool) for seed in settings.seeds]
    if arm.kind == "random-like":
        assert arm.like is not None
        return [draw_like_lengths(arm.name, found[arm.like, budget][0], seed, pool) for seed in settings.seeds]
    if arm.kind == "file":
        return [read_arm_file(arm, budget, pool, data.held_out)]
    kept = ChoiceFile(folder / CHOICES / f"{arm.name}-{budget}.json", selection_key(arm, budget, settings, pool))
    before = kept.read(pool)
    if before is not None:
        return [Choice(arm.name, budget, None, before)]
    reporter.say(f"{arm.name} at {budget}:")
    choice = select_arm(arm, budget, pool, settings, folder / SCORING, reporter)
    kept.write(choice, pool)
    return [choice]


class StoredChoice(Stored):
    """A choice on disk."""

    key: str
    ids: list[str]


class ChoiceFile:
    """A choice on disk, valid while its key stays the same."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self, pool: Pool) -> tuple[int, ...] | None:
        """Return the stored places; None if there are none, or they belong to other settings."""
        if not self.path.exists():
            return None
        hint = "delete the file: the arm is chosen again, from the answers that are kept"
        found = read_json(self.path, StoreError, hint, StoredChoice)
        if found["key"] != self.key:
            return None
        place = {id_: i for i, id_ in enumerate(pool.ids)}
        with foreign(StoreError, f"`{self.path}` is damaged", hint):
            return tuple(place[id_] for id_ in found["ids"])

    def write(self, choice: Choice, pool: Pool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"key": self.key, "ids": [pool.ids[i] for i in choice.places]})


def selection_key(arm: ArmSettings, budget: str, settings: ExperimentSettings, pool: Pool) -> str:
    """Return a key that changes with the selection's settings, the pool, and the files that the settings name."""
    # The digest holds full settings, not just those given, so that a changed default invalidates the choice, too.
    state = hashlib.blake2b(digest_size=8)
    chosen = selection_settings(arm, budget, pool, settings)
    state.update(repr(sorted(chosen.model_dump(mode="json").items())).encode())
    state.update("\n".join(pool.ids).encode())
    for name in (chosen.head, chosen.target, chosen.shot_pool, chosen.model):
        state.update(file_stamp(name).encode())
    return state.hexdigest()


def file_stamp(name: str | None) -> str:
    """Return names, sizes and times of a file or folder; nothing for what is not on this disk, such as a hub id."""
    if name is None or not Path(name).exists():
        return ""
    path = Path(name)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return repr([(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files])


def arm_table(
    choices: Mapping[tuple[str, str], Sequence[Choice]],
    pool: Pool,
    settings: ExperimentSettings,
    recipe: TrainingRecipe,
) -> list[dict[str, Any]]:
    """Return a row per arm and budget: examples, tokens, optimiser steps, and the overlap with the reference arm.

    A length-matched arm also gets its overlap with the arm it matches. If that one takes all examples of a length, as
    `length` does, no others are left to draw, and the two arms are the same.
    """
    rows, against = [], settings.against
    before: dict[tuple[str, str], Sequence[Choice]] = {}  # rows done so far, to find arms with the same examples
    like = {arm.name: arm.like for arm in settings.arms}
    for (arm, budget), found in choices.items():
        other = choices.get((against, budget))
        row: dict[str, Any] = {"arm": arm, "budget": budget, "draws": len(found), **length_facts(found[0], pool)}
        row["steps"] = steps_in_all(len(found[0].places), recipe)
        row["same_as"] = next((name for (name, _), one in before.items() if same_examples(one, found)), None)
        before[arm, budget] = found
        row[f"shared_with_{against}"] = None if other is None or arm == against else overlap(found[0], other[0])
        repeated = like.get(arm)
        if repeated is not None:
            row["repeats"], row["shared_with_it"] = repeated, overlap(found[0], choices[repeated, budget][0])
        rows.append(row)
    return rows


def same_examples(one: Sequence[Choice], other: Sequence[Choice]) -> bool:
    """Return whether two arms train on the same examples."""
    return [choice.places for choice in one] == [choice.places for choice in other]
