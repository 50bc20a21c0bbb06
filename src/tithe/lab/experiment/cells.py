"""One training and its evaluation: a cell of the table of arms, budgets and seeds."""

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
from tithe.lab.experiment.arm_choices import Choice, Said, by_seed
from tithe.lab.experiment.experiment_data import Pool
from tithe.report.reporter import Reporter
from tithe.run.folder import Account, has_finished, write_json

CELLS, SPEC, DONE, TRAIN = "cells", "cell-settings.json", "cell.json", "train.jsonl"
UNTRAINED = "base"
AGAIN = "delete the file: the cell is then done again"


class SpecSaid(Said):
    """Of `cell-settings.json`."""

    arm: str
    budget: str | None
    seed: int | None
    tune: dict[str, Any] | None
    evaluation: dict[str, Any]
    keep_models: bool


class TrainingSaid(Said):
    """Of a training in `cell.json`."""

    recipe_digest: str
    steps: int


class MetricSaid(Said):
    """Of a metric in `cell.json`."""

    metric: str
    kind: str
    unit: str
    higher_is_better: bool
    about: dict[str, Any]


class DoneSaid(Said):
    """Of `cell.json`."""

    training: TrainingSaid | None
    evaluation: list[MetricSaid]
    items: str
    seconds: float
    spec_digest: str


@dataclass(frozen=True)
class Cell:
    """What is trained and evaluated once.

    Args:
        arm: name.
        budget: as it was written; None of the untrained model.
        seed: of the training; None of the untrained model.
        choice: what it is trained on; None of the untrained model.
        key: the same for cells that are trained on the same examples with the same seed.
    """

    arm: str
    budget: str | None
    seed: int | None
    choice: Choice | None
    key: str

    @property
    def name(self) -> str:
        """Of its folder, and for people."""
        return self.arm if self.budget is None else f"{self.arm}-{self.budget}-seed{self.seed}"

    @property
    def examples(self) -> int:
        return len(self.choice.places) if self.choice else 0


def make_cells(
    choices: Mapping[tuple[str, str], Sequence[Choice]], seeds: Sequence[int], base: str | None
) -> list[Cell]:
    """All cells, seed by seed, so that a stopped experiment has whole seeds; the largest first within each.

    Args:
        choices: (arm, budget) -> one choice for all seeds, or one for each.
        seeds: of training.
        base: name of the arm of the untrained model, if there is one.
    """
    cells = [Cell(base, None, None, None, UNTRAINED)] if base else []
    for seed in seeds:
        own = [by_seed(found, seed) for found in choices.values()]
        for choice in sorted(own, key=lambda one: -len(one.places)):
            cells.append(Cell(choice.arm, choice.budget, seed, choice, cell_key(choice, seed)))
    return cells


def cell_key(choice: Choice, seed: int) -> str:
    state = hashlib.blake2b(repr((choice.places, seed)).encode(), digest_size=8)
    return state.hexdigest()


def distinct(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Key -> the first cell that has it, which is the one that is trained."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.key, cell)
    return found


def prepare(
    cell: Cell, pool: Pool, folder: Path, common: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write what a worker reads of a cell: its examples and its settings.

    Args:
        cell: to be trained.
        pool: of the examples.
        folder: of the experiment.
        common: `tune` and `evaluation` settings of all cells, and `keep_models`.
        say: is told of a cell that was there with other examples or settings, and is removed.
    """
    own = folder / CELLS / cell.name
    data = own / TRAIN
    spec: dict[str, Any] = {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "examples": cell.key, **common}
    spec["tune"] = {**common["tune"], "dataset": str(data), "seed": cell.seed} if cell.choice else None
    forget(own, spec, say)
    own.mkdir(parents=True, exist_ok=True)
    if cell.choice is not None:
        pool.write(cell.choice.places, data)
    write_json(own / SPEC, spec)
    return own


def forget(own: Path, spec: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Remove a cell of other settings: of another choice, that is, since all else is one for the whole folder."""
    if not (own / SPEC).exists():
        return
    before = read_spec(own)
    if spec_digest(before) != spec_digest(spec):
        say(f"{own.name}: other examples or settings than before, so that it is done anew")
        shutil.rmtree(own)


def read_spec(own: Path) -> dict[str, Any]:
    """Return what a worker is to read of a cell.

    Raises:
        StoreError: the file is damaged.
    """
    hint = "delete the file: it is written again, and a cell that is done stays"
    return read_json(own / SPEC, StoreError, hint, SpecSaid)


def read_done(own: Path) -> dict[str, Any] | None:
    """Return the record of a cell that is done; None where it is not.

    Raises:
        StoreError: the file is damaged.
    """
    found = read_ended(own)
    if found is None or not has_finished(found):
        return None
    demand_shape(found, DoneSaid, own / DONE, StoreError, AGAIN)
    return found


def read_ended(own: Path) -> dict[str, Any] | None:
    """Return the record of a cell however it ended; None where it was not begun, or the process was killed.

    Raises:
        StoreError: the file is damaged.
    """
    return read_json(own / DONE, StoreError, AGAIN) if (own / DONE).exists() else None


@dataclass(frozen=True)
class CellResult:
    """A cell that is done.

    Args:
        cell: which.
        record: its `cell.json`.
        measured: every metric, item by item.
        trained: name of the cell that was trained in its place, where both are trained on the same.
    """

    cell: Cell
    record: Mapping[str, Any]
    measured: tuple[Measured, ...]
    trained: str


def outcome(cell: Cell, folder: Path) -> CellResult | None:
    """What a worker left of a cell that is done; None where it is not.

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


def finished(cell: Cell, own: Path, spec: Mapping[str, Any]) -> bool:
    """Whether a cell is done under these very settings."""
    record = read_done(own)
    return record is not None and bool(record["spec_digest"] == spec_digest(spec))


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Of all that its result depends on: the examples by what they are, wherever the folder lies."""
    tune, evaluation = spec["tune"], spec["evaluation"]
    rest = {"tune": tune and {**tune, "dataset": None}, "evaluation": {**evaluation, "holdout": None}}
    text = json.dumps({**spec, **rest}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_broken_off(own: Path, error: BaseException) -> None:
    """Write how a cell ended that was begun and is not done."""
    if read_done(own) is None:
        Account(own, Reporter(), lambda: brief_spec(own), DONE, stores=None).write_broken_off(error)


def brief_spec(own: Path) -> dict[str, Any]:
    """Return which cell this is."""
    spec = read_spec(own)
    return {name: spec[name] for name in ("arm", "budget", "seed")} | {"spec_digest": spec_digest(spec)}


def write_done(own: Path, record: Mapping[str, Any]) -> None:
    with atomic(own / DONE, overwrite=True) as stream:
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        stream.write(text.encode(errors="backslashreplace") + b"\n")


def restored(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where settings have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def answers_file(own: Path, prompts: str) -> Path:
    """Of a cell's model to a prompt set."""
    return own / f"answers-{Path(prompts).stem}.jsonl"
