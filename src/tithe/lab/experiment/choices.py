"""What all arms chose, found again where nothing has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tithe.errors import SettingsError, StoreError
from tithe.foreign import foreign, read_json
from tithe.lab.experiment.cells import Said
from tithe.lab.experiment.choosing import (
    Choice,
    all_of,
    at_random,
    from_file,
    lengths,
    like_lengths,
    overlap,
    scored,
    selection_settings,
    wanted,
)
from tithe.lab.experiment.data import Data
from tithe.lab.experiment.pool import Pool
from tithe.lab.experiment.settings import ALL, ArmSettings, ExperimentSettings
from tithe.lab.tune.optimiser_steps import steps_in_all
from tithe.lab.tune.recipe import Recipe
from tithe.report.reporter import Talk
from tithe.run.folder import write_json
from tithe.selectors.budget import Budget

Choices = dict[tuple[str, str], list[Choice]]
SCORING, CHOICES = "scoring", "choices"


def choose_all(settings: ExperimentSettings, data: Data, folder: Path, talk: Talk) -> Choices:
    """(arm, budget) -> one choice for all seeds, or one for each; arms in their order.

    At a budget of everything every arm is the full set, which is trained on once.

    Raises:
        TitheError: a budget of more than there is, or what stops an arm's selection.
    """
    pool = data.pool
    for budget in settings.budgets:
        rows, tokens = wanted(pool, budget), int(pool.response_tokens.sum())
        if rows is None and Budget.parse(budget).amount >= tokens:
            raise SettingsError(
                f"the budget `{budget}` is not less than the pool, which has {tokens:,} response tokens",
                hint=f"`{ALL}` is all of it",
            )
        if rows is not None and rows > len(pool):
            raise SettingsError(
                f"the budget `{budget}` is more than the pool, which has {len(pool):,} examples",
                hint=f"`{ALL}` is all of it",
            )
    partial = [budget for budget in settings.budgets if wanted(pool, budget) != len(pool)]
    found: Choices = {}
    order = [arm for arm in settings.arms if arm.kind != "random-like"]
    for arm in [*order, *(arm for arm in settings.arms if arm.kind == "random-like")]:
        for budget in partial if arm.budgeted else ():
            found[arm.name, budget] = chosen(arm, budget, settings, data, found, folder, talk)
    full = next((arm.name for arm in settings.arms if arm.kind == "full"), None)
    if full or len(partial) < len(settings.budgets):
        found[full or "full", ALL] = [all_of(full or "full", pool)]
    names = [arm.name for arm in settings.arms]
    return dict(sorted(found.items(), key=lambda item: names.index(item[0][0]) if item[0][0] in names else len(names)))


def chosen(
    arm: ArmSettings,
    budget: str,
    settings: ExperimentSettings,
    data: Data,
    found: Mapping[tuple[str, str], Sequence[Choice]],
    folder: Path,
    talk: Talk,
) -> list[Choice]:
    """One arm's examples at one budget."""
    pool = data.pool
    if arm.kind == "random":
        return [at_random(arm.name, budget, seed, pool) for seed in settings.seeds]
    if arm.kind == "random-like":
        assert arm.like is not None
        return [like_lengths(arm.name, found[arm.like, budget][0], seed, pool) for seed in settings.seeds]
    if arm.kind == "file":
        return [from_file(arm, budget, pool, dict.fromkeys(data.held_out, ""))]
    kept = Kept(folder / CHOICES / f"{arm.name}-{budget}.json", selection_key(arm, budget, settings, pool))
    before = kept.read(pool)
    if before is not None:
        return [Choice(arm.name, budget, None, before)]
    talk.say(f"{arm.name} at {budget}:")
    choice = scored(arm, budget, pool, settings, folder / SCORING, talk)
    kept.write(choice, pool)
    return [choice]


class ChoiceSaid(Said):
    """Of a choice on disk."""

    key: str
    ids: list[str]


class Kept:
    """A choice on disk, under what it depends on."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self, pool: Pool) -> tuple[int, ...] | None:
        """Places in the pool; None where there are none, or those of other settings."""
        if not self.path.exists():
            return None
        hint = "delete the file: the arm is chosen again, from the answers that are kept"
        found = read_json(self.path, StoreError, hint, ChoiceSaid)
        if found["key"] != self.key:
            return None
        place = {id_: i for i, id_ in enumerate(pool.ids)}
        with foreign(StoreError, f"`{self.path}` is damaged", hint):
            return tuple(place[id_] for id_ in found["ids"])

    def write(self, choice: Choice, pool: Pool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"key": self.key, "ids": [pool.ids[i] for i in choice.places]})


def selection_key(arm: ArmSettings, budget: str, settings: ExperimentSettings, pool: Pool) -> str:
    """Changes with the selection's settings, the pool, and the files that the settings name."""
    state = hashlib.blake2b(digest_size=8)
    chosen = selection_settings(arm, budget, pool, settings)
    state.update(repr(sorted(chosen.model_dump(mode="json").items())).encode())
    state.update("\n".join(pool.ids).encode())
    for name in (chosen.head, chosen.target, chosen.shot_pool, chosen.model):
        state.update(stamp(name).encode())
    return state.hexdigest()


def stamp(name: str | None) -> str:
    """Names, sizes and times of a file or folder; nothing for what is not on this disk."""
    if name is None or not Path(name).exists():
        return ""
    path = Path(name)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return repr([(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files])


def table(
    choices: Mapping[tuple[str, str], Sequence[Choice]], pool: Pool, settings: ExperimentSettings, recipe: Recipe
) -> list[dict[str, Any]]:
    """Per arm and budget: examples, tokens, optimiser steps, and how much of it the reference arm has, too.

    Of an arm that repeats another's lengths also how much it shares with that: where the other takes all examples of
    a length, as `length` does, there are no others to draw, and the two are one arm.
    """
    rows, against = [], settings.against
    before: dict[tuple[str, str], Sequence[Choice]] = {}
    like = {arm.name: arm.like for arm in settings.arms}
    for (arm, budget), found in choices.items():
        other = choices.get((against, budget))
        row: dict[str, Any] = {"arm": arm, "budget": budget, "draws": len(found), **lengths(found[0], pool)}
        row["steps"] = steps_in_all(len(found[0].places), recipe)
        row["same_as"] = next((name for (name, _), one in before.items() if same(one, found)), None)
        before[arm, budget] = found
        row[f"shared_with_{against}"] = None if other is None or arm == against else overlap(found[0], other[0])
        repeated = like.get(arm)
        if repeated is not None:
            row["repeats"], row["shared_with_it"] = repeated, overlap(found[0], choices[repeated, budget][0])
        rows.append(row)
    return rows


def same(one: Sequence[Choice], other: Sequence[Choice]) -> bool:
    """Whether two arms are trained on the same."""
    return [choice.places for choice in one] == [choice.places for choice in other]
