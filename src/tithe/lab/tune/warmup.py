"""Warm a model up before it scores: choose examples, train one epoch on them; on its own, or inside a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.export import write_records
from tithe.errors import SettingsError
from tithe.lab.tune.files import CHOSEN, DONE, TuneResult, read_if_there
from tithe.lab.tune.processes import is_main, wait
from tithe.lab.tune.settings import WarmupSettings
from tithe.lab.tune.train import demand_packages
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Training, open_training
from tithe.lab.tune.tune import carry_out
from tithe.lab.tune.warmup_choice import WarmupChoice, choose
from tithe.report.reporter import Reporter
from tithe.run.folder import has_finished, write_json
from tithe.settings import ScoreSettings

if TYPE_CHECKING:
    from tithe.run.method import Setup

RECORDS = "chosen.jsonl"
FOLDER = "warmup"  # in a run folder
TAKEN = ("dataset", "format", "turns", "split", "limit", "strict", "model", "template", "bos", "seed")


def warm_up(
    settings: WarmupSettings, output: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> TuneResult:
    """Train a model for one epoch on a few examples of the data set that it will score.

    Args:
        settings: which examples, and how.
        output: folder of the model, with `chosen.jsonl`: the records it was trained on. Goes on, or is found finished,
            as that of `tune`.
        overwrite: choose and train anew.
        reporter: who listens.

    Raises:
        TitheError: whatever stops it.
    """
    demand_packages()
    training = open_warmup(settings)
    return train_chosen(training, identity(training), output, overwrite=overwrite, reporter=reporter or Reporter())


def open_warmup(settings: WarmupSettings) -> Training[WarmupSettings]:
    """Find everything that a warm-up is made of.

    Raises:
        TitheError: what is wrong with it; or the model had a warm-up already.
    """
    training = open_training(settings)
    files = training.model.files
    if is_warmed(files.adapter or files.folder):
        raise SettingsError(
            f"the model `{files.name}` was warmed up already",
            hint="score with it as it is, or give the model it was made of",
        )
    return training


def identity(training: Training[WarmupSettings]) -> dict[str, Any]:
    """Return what makes two warm-ups equal."""
    s = training.settings
    return training.identity() | {name: getattr(s, name) for name in ("records", "choose", "clusters", "encoder")}


def train_chosen(
    training: Training[WarmupSettings], own: dict[str, Any], output: Path, *, overwrite: bool, reporter: Reporter
) -> TuneResult:
    """Choose and train in a folder, or find it done there."""
    chooser = partial(choose_in, training, own, overwrite, reporter)
    return carry_out(training, own, output, overwrite=overwrite, reporter=reporter, choose=chooser)


def choose_in(
    training: Training[WarmupSettings],
    own: dict[str, Any],
    overwrite: bool,
    reporter: Reporter,
    rows: TrainRows,
    place: Path,
) -> tuple[TrainRows, Mapping[str, Any]]:
    """Choose the examples, or find the choice that an interrupted run has made.

    Returns:
        Their rows, and what the record says of the choice.
    """
    file = place / CHOSEN
    if is_main():
        there = None if overwrite else read_if_there(file)
        if there is None or there.get("identity") != own:
            choice = choose(training, rows, reporter)
            write_records(training.source.dataset, choice.places(), place / RECORDS, overwrite=True)
            write_json(file, {"identity": own, **choice.as_dict()})
    wait()
    told = read_if_there(file)
    assert told is not None
    made = WarmupChoice(told["chosen"], told["facts"])
    facts = made.facts
    reporter.say(f"{len(made.chosen):,} of {facts['candidates']:,} examples for the warm-up: {facts['how']}")
    return rows.only({one["id"] for one in made.chosen}), {"warmup": {**facts, "chosen": list(made.chosen)}}


def is_warmed(folder: Path) -> bool:
    """Return whether a folder holds what `warm_up` made."""
    record = read_if_there(folder / DONE)
    return record is not None and has_finished(record) and "warmup" in record


def warm_up_for_run(setup: Setup, folder: Path | None, reporter: Reporter) -> dict[str, Any]:
    """Train the model that a run scores with, or find it in the run folder (`--warmup`).

    The model lies under a name made of all that its training depends on: another data set, model or setting makes
    another one.

    Returns:
        What the run record says of the warm-up.

    Raises:
        SettingsError: the model had a warm-up already.
    """
    assert folder is not None
    demand_packages()
    training = open_warmup(settings_of_run(setup.settings, setup.model.first_device))
    own = identity(training)
    name = hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=8).hexdigest()
    reporter.say("warm-up: the model is trained briefly before it scores")
    made = train_chosen(training, own, folder / FOLDER / name, overwrite=False, reporter=reporter)
    reporter.say(f"scoring with the warmed-up model in `{made.folder}`")
    record, model = made.record, training.model
    return {
        "folder": str(made.folder),
        "base": {"name": model.name, "fingerprint": model.fingerprint},
        "dataset_digest": record["dataset"]["digest"],
        "records": record["counts"]["trained_on"],
        "chosen": {name: value for name, value in record["warmup"].items() if name != "chosen"},
        "recipe_digest": record["recipe_digest"],
        "steps": record["steps"],
        "losses": [record["losses"][0], record["losses"][-1]],
        "seconds": record["seconds"],
    }


def settings_of_run(settings: ScoreSettings, device: str) -> WarmupSettings:
    """Return the settings of a run's warm-up: data and rendering are the run's, the rest is the paper's."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in TAKEN}
    values |= {"trust_remote_code": settings.trust_remote_code, "device": device}
    if settings.max_length is not None:
        values["max_length"] = settings.max_length
    return WarmupSettings.of(values)
