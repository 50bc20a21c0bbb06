"""What each arm is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tithe.config import SelectSettings, with_preset
from tithe.data.files import open_dataset
from tithe.errors import DataError, SettingsError, TitheError
from tithe.lab.experiment.pool import Pool
from tithe.lab.experiment.settings import ArmSettings, ExperimentSettings
from tithe.records import Example, Scores
from tithe.report.reporter import Talk
from tithe.run.pipeline import select
from tithe.selectors.budget import Budget

BINS = 20  # of the pool's lengths, equally full, within which a length-matched arm draws


@dataclass(frozen=True)
class Choice:
    """The examples that one training sees.

    Args:
        arm: name.
        budget: as it was written; `100%` of the full set.
        seed: None where all seeds are trained on the same.
        places: of the pool, in its order.
    """

    arm: str
    budget: str
    seed: int | None
    places: tuple[int, ...]


def wanted(pool: Pool, budget: str) -> int | None:
    """Rows that a budget comes to; None where it counts tokens."""
    return Budget.parse(budget).rows(len(pool), len(pool))


def scored(arm: ArmSettings, budget: str, pool: Pool, settings: ExperimentSettings, folder: Path, talk: Talk) -> Choice:
    """A selection as `tithe select` makes it; all arms share the answers in one run folder.

    Raises:
        TitheError: what the selection says, naming the arm; or it has chosen fewer than the budget.
    """
    try:
        result = select(selection_settings(arm, budget, pool, settings), folder=folder, talk=talk)
    except TitheError as error:
        raise type(error)(f"arm `{arm.name}` at {budget}: {error}", hint=error.hint) from error
    kept = set(result.kept)
    return checked(arm, Choice(arm.name, budget, None, places_of(kept, pool)), pool)


def selection_settings(arm: ArmSettings, budget: str, pool: Pool, settings: ExperimentSettings) -> SelectSettings:
    """The arm's own settings over those of all arms."""
    common: dict[str, Any] = {
        "dataset": str(pool.path),
        "model": settings.model,
        "template": settings.template,
        "device": settings.device,
        "trust_remote_code": settings.trust_remote_code,
        "max_length": settings.max_length,
        "truncation": settings.truncation if settings.truncation == "prompt" else None,
    }
    if "preset" in arm.select:  # which has a template and a length of its own
        common = {key: value for key, value in common.items() if key not in ("template", "max_length", "truncation")}
    return with_preset(SelectSettings, {**common, **settings.scoring, **arm.select, "keep": budget})


def places_of(ids: set[str], pool: Pool) -> tuple[int, ...]:
    return tuple(i for i, id_ in enumerate(pool.ids) if id_ in ids)


def checked(arm: ArmSettings, choice: Choice, pool: Pool) -> Choice:
    """Refuse an arm that has fewer examples than the others at its budget.

    Raises:
        SettingsError: it has, and is not allowed to.
    """
    rows = wanted(pool, choice.budget)
    if not choice.places:
        raise SettingsError(f"arm `{arm.name}` has selected nothing at {choice.budget}", hint="look at its filters")
    if rows is not None and len(choice.places) < rows and not arm.allow_fewer:
        raise SettingsError(
            f"arm `{arm.name}` has selected {len(choice.places):,} examples at {choice.budget}, the others have "
            f"{rows:,}: a smaller set would be compared with a larger one",
            hint="a smaller budget, `drop: []` for the arm, or `allow_fewer: true` to compare them all the same",
        )
    return choice


def at_random(name: str, budget: str, seed: int, pool: Pool) -> Choice:
    """Drawn with equal chances."""
    order = np.random.default_rng([seed, 1]).permutation(len(pool))
    scores = Scores(pool.ids, np.zeros(len(pool)), columns={"response_tokens": pool.response_tokens}, by=name)
    taken = Budget.parse(budget).take(scores, order)
    return Choice(name, budget, seed, tuple(sorted(taken.tolist())))


def like_lengths(name: str, like: Choice, seed: int, pool: Pool) -> Choice:
    """Drawn by chance with the lengths of another arm: as many from each of twenty bins of the pool's lengths."""
    rng = np.random.default_rng([seed, 2])
    edges = np.unique(np.quantile(pool.response_tokens, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, pool.response_tokens, side="right")
    counts = np.bincount(bins[list(like.places)], minlength=len(edges) + 1)
    taken: list[int] = []
    for number, count in enumerate(counts.tolist()):
        taken += rng.choice(np.flatnonzero(bins == number), size=count, replace=False).tolist()
    return Choice(name, like.budget, seed, tuple(sorted(taken)))


def from_file(arm: ArmSettings, budget: str, pool: Pool, held_out: Mapping[str, str]) -> Choice:
    """Records that were chosen elsewhere, found in the pool by what they say.

    Args:
        arm: names the file; `{budget}` in it stands for the budget.
        budget: to be met.
        pool: where they are found.
        held_out: id -> anything, of the examples held out.

    Raises:
        DataError: some of them are not in the pool, or are held out.
    """
    assert arm.file is not None
    path = arm.file.replace("{budget}", budget)
    ids = {item.id for item in open_dataset(path) if isinstance(item, Example)}
    strange = ids - set(pool.ids)
    if strange:
        held = sum(id_ in held_out for id_ in strange)
        raise DataError(
            f"arm `{arm.name}`: {len(strange):,} of {len(ids):,} examples of `{path}` are not in the pool, "
            f"{held:,} of them are held out",
            hint="select from `data/pool.jsonl` of the experiment's folder",
        )
    return checked(arm, Choice(arm.name, budget, None, places_of(ids, pool)), pool)


def lengths(choice: Choice, pool: Pool) -> dict[str, float]:
    """Of the responses chosen, in tokens."""
    tokens = pool.response_tokens[list(choice.places)]
    return {"examples": len(tokens), "response_tokens": int(tokens.sum()), "median_length": float(np.median(tokens))}


def overlap(one: Choice, other: Choice) -> float:
    """Share of the first that the second has, too."""
    return len(set(one.places) & set(other.places)) / len(one.places)


def all_of(name: str, pool: Pool) -> Choice:
    return Choice(name, "100%", None, tuple(range(len(pool))))


def by_seed(choices: Sequence[Choice], seed: int) -> Choice:
    """The choice that a seed is trained on."""
    return next(one for one in choices if one.seed in (None, seed))
