"""Outcomes of an experiment that nobody conducted, with effects that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tithe.lab.evaluate.measured import Measured, as_records
from tithe.lab.experiment.cells import Cell, CellResult
from tithe.lab.experiment.settings import ExperimentSettings


def settings_of(arms: Sequence[str], budgets: Sequence[str], seeds: int) -> ExperimentSettings:
    named = {arm: None if arm in ("random", "full", "base") else {"scorer": "ifd"} for arm in arms}
    return ExperimentSettings.of(
        {"dataset": "d.jsonl", "model": "m", "arms": named, "budgets": list(budgets), "seeds": seeds}
    )


def fabricate(
    effects: Mapping[str, float],
    settings: ExperimentSettings,
    rng: np.random.Generator,
    *,
    items: int = 100,
    world: tuple[float, float, float] = (0.05, 0.5, 0.5),
    groups: Sequence[str] = (),
    digest: str = "r",
) -> list[CellResult]:
    """NLLs: how hard an item is, less the arm's effect, with chance of runs, of (arm, item) and of the rest.

    Args:
        effects: arm -> how much lower its NLL is.
        settings: arms, budgets, seeds.
        rng: where chance comes from.
        items: held-out examples.
        world: standard deviations of a run, of an arm on an item, and of a run on an item.
        groups: of the items, in turn.
        digest: of the recipe.
    """
    run, taste, rest = world
    names = tuple(f"i{n}" for n in range(items))
    parts = tuple(groups[n % len(groups)] for n in range(items)) if groups else ()
    hard = rng.normal(3, 1, items)
    found = []
    for arm in settings.arms:
        budgets = settings.budgets if arm.budgeted else ("100%",) if arm.kind == "full" else (None,)
        for budget in budgets:
            liked = rng.normal(0, taste, items)
            for seed in settings.seeds if budget else (None,):
                values = hard - effects.get(arm.name, 0.0) + liked + rng.normal(0, run) + rng.normal(0, rest, items)
                one = Measured("holdout_nll", "number", "nats/token", False, names, values, parts)
                training = {"recipe_digest": digest, "steps": 9, "first_loss": 3.0, "last_loss": 2.0}
                record = {"training": training if budget else None, "evaluation": as_records([one]), "seconds": 1.0}
                cell = Cell(arm.name, budget, seed, None, f"{arm.name}{budget}{seed}")
                found.append(CellResult(cell, record, (one,), cell.name))
    return found
