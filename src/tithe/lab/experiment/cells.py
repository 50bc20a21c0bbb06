"""A cell is one training and its evaluation, in the grid of arms, budgets and seeds; its folder keeps all files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import StoreError
from tithe.foreign import demand_shape, foreign, read_json
from tithe.lab.evaluate.measured import Measured, from_files
from tithe.lab.experiment.arm_choices import Choice, Stored, choice_of_seed
from tithe.lab.experiment.experiment_data import Pool
from tithe.report.reporter import Reporter
from tithe.run.folder import RecordWriter, has_finished, write_json

CELLS, SPEC, DONE, TRAIN = "cells", "cell-settings.json", "cell.json", "train.jsonl"
UNTRAINED, TRACKING = "base", "tracking"
AGAIN = "delete the file: the cell is then done again"


class StoredSpec(Stored):
    """`cell-settings.json`."""

    arm: str
    budget: str | None
    seed: int | None
    tune: dict[str, Any] | None
    evaluation: dict[str, Any]
    keep_models: bool


class StoredTraining(Stored):
    """A training in `cell.json`."""

    recipe_digest: str
    steps: int


class StoredMetric(Stored):
    """A metric in `cell.json`."""

    metric: str
    kind: str
    unit: str
    higher_is_better: bool
    about: dict[str, Any]


class StoredCell(Stored):
    """`cell.json` of a finished cell."""

    training: StoredTraining | None
    evaluation: list[StoredMetric]
    items: str
    seconds: float
    spec_digest: str


@dataclass(frozen=True)
class Cell:
    """A model to train and evaluate once.

    Args:
        arm: name.
        budget: as it was written; None for the untrained model.
        seed: of the training; None for the untrained model.
        choice: the training examples; None for the untrained model.
        key: equal for cells with the same examples and seed, of which only one is trained.
    """

    arm: str
    budget: str | None
    seed: int | None
    choice: Choice | None
    key: str

    @property
    def name(self) -> str:
        """Name of the folder, also shown to users."""
        return self.arm if self.budget is None else f"{self.arm}-{self.budget}-seed{self.seed}"

    @property
    def examples(self) -> int:
        return len(self.choice.places) if self.choice else 0


def make_cells(
    choices: Mapping[tuple[str, str], Sequence[Choice]], seeds: Sequence[int], base: str | None
) -> list[Cell]:
    """List all cells, seed by seed, so that a stopped experiment has complete seeds; the largest first in each.

    Args:
        choices: (arm, budget) -> one choice for all seeds, or one for each.
        seeds: of training.
        base: name of the untrained model's arm, if there is one.
    """
    cells = [Cell(base, None, None, None, UNTRAINED)] if base else []
    for seed in seeds:
        own = [choice_of_seed(found, seed) for found in choices.values()]
        for choice in sorted(own, key=lambda one: -len(one.places)):
            cells.append(Cell(choice.arm, choice.budget, seed, choice, cell_key(choice, seed)))
    return cells


def cell_key(choice: Choice, seed: int) -> str:
    return hashlib.blake2b(repr((choice.places, seed)).encode(), digest_size=8).hexdigest()


def distinct_cells(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Map each key to the first cell that has it: the one that is trained."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.key, cell)
    return found


def prepare(cell: Cell, pool: Pool, folder: Path, common: Mapping[str, Any], say: Callable[[str], None]) -> Path:
    """Write a cell's examples and settings for the worker, and return the cell's folder.

    Args:
        cell: to be trained.
        pool: that its examples come from.
        folder: of the experiment.
        common: `tune` and `evaluation` settings of all cells, and `keep_models`.
        say: called with a sentence if a cell with other examples or settings is removed.
    """
    own = folder / CELLS / cell.name
    data = own / TRAIN
    spec: dict[str, Any] = {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "examples": cell.key, **common}
    # An untrained model has no training settings.
    spec["tune"] = {**common["tune"], "dataset": str(data), "seed": cell.seed} if cell.choice else None
    if TRACKING in common:
        spec[TRACKING] = {**common[TRACKING], "run_name": cell.name}
    remove_if_changed(own, spec, say)
    own.mkdir(parents=True, exist_ok=True)
    if cell.choice is not None:
        pool.write(cell.choice.places, data)
    write_json(own / SPEC, spec)
    return own


def remove_if_changed(own: Path, spec: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Remove a cell with other examples or settings."""
    if not (own / SPEC).exists():
        return
    before = read_spec(own)
    if spec_digest(before) != spec_digest(spec):
        say(f"{own.name}: its examples or settings have changed: it is done again")
        shutil.rmtree(own)


def read_spec(own: Path) -> dict[str, Any]:
    """Read a cell's settings.

    Raises:
        StoreError: the file is damaged.
    """
    hint = "delete the file: it is written again, and a cell that is done stays"
    return read_json(own / SPEC, StoreError, hint, StoredSpec)


def read_done(own: Path) -> dict[str, Any] | None:
    """Return the record of a finished cell; None if it has not finished.

    Raises:
        StoreError: the file is damaged.
    """
    found = read_ended(own)
    if found is None or not has_finished(found):
        return None
    demand_shape(found, StoredCell, own / DONE, StoreError, AGAIN)
    return found


def read_ended(own: Path) -> dict[str, Any] | None:
    """Return the record of a cell, finished or not; None if it never began, or its process was killed.

    Raises:
        StoreError: the file is damaged.
    """
    return read_json(own / DONE, StoreError, AGAIN) if (own / DONE).exists() else None


@dataclass(frozen=True)
class CellResult:
    """What a finished cell measured.

    Args:
        cell: which one.
        record: its `cell.json`.
        measured: every metric, item by item.
        trained: name of the cell whose training this is; another one's if both have the same examples.
    """

    cell: Cell
    record: Mapping[str, Any]
    measured: tuple[Measured, ...]
    trained: str


def cell_result(cell: Cell, folder: Path) -> CellResult | None:
    """Read what a cell measured; None if it has not finished.

    Raises:
        StoreError: its record cannot be read.
    """
    own = folder / CELLS / cell.name
    record = read_done(own)
    if record is None:
        return None
    with foreign(StoreError, f"`{own / DONE}` cannot be read", AGAIN):
        measured = from_files(own / record["items"], record["evaluation"])
    return CellResult(cell, record, tuple(measured), cell.name)


def is_finished(cell: Cell, own: Path, spec: Mapping[str, Any]) -> bool:
    """Return whether a cell has finished with exactly these settings."""
    record = read_done(own)
    return record is not None and bool(record["spec_digest"] == spec_digest(spec))


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return a digest of everything that a cell's result depends on."""
    # Without the paths of the examples: an experiment's folder may be moved, and `examples` has their key.
    tune, evaluation = spec["tune"], spec["evaluation"]
    rest = {"tune": tune and {**tune, "dataset": None}, "evaluation": {**evaluation, "holdout": None}}
    spec = {name: value for name, value in spec.items() if name != TRACKING}  # who looks on changes no result
    text = json.dumps({**spec, **rest}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_broken_off(own: Path, error: BaseException) -> None:
    """Record why a cell stopped before it finished."""
    if read_done(own) is None:
        RecordWriter(own, Reporter(), lambda: brief_spec(own), DONE, stores=None).write_broken_off(error)


def brief_spec(own: Path) -> dict[str, Any]:
    """Return the arm, budget, seed and settings digest of a cell."""
    spec = read_spec(own)
    return {name: spec[name] for name in ("arm", "budget", "seed")} | {"spec_digest": spec_digest(spec)}


def write_done(own: Path, record: Mapping[str, Any]) -> None:
    with atomic(own / DONE, overwrite=True) as stream:
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        stream.write(text.encode(errors="backslashreplace") + b"\n")


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists from JSON back into the tuples that settings have."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def answers_file(own: Path, prompts: str) -> Path:
    """Return the file with the answers of a cell's model to a prompt set."""
    return own / f"answers-{Path(prompts).stem}.jsonl"
