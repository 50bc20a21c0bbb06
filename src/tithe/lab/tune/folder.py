"""The folder of a training: whose it is, what was begun or ended in it, and how a model gets into it."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic, writing
from tithe.errors import MissingExtraError, OutputError, StoreError
from tithe.foreign import read_json
from tithe.lab.tune.checkpoints import Checkpoint, sweep_checkpoints
from tithe.lab.tune.curve import plot_losses
from tithe.lab.tune.parts import TuneParts
from tithe.lab.tune.train import Trained
from tithe.report.reporter import Talk
from tithe.run.folder import has_finished

DONE, BEGUN, CHECKPOINTS, NEW = "tune.json", "begun.json", "checkpoints", ".new"
CHOSEN = "chosen.json"  # which examples a warm-up takes; outlasts an interruption
LOSSES, CURVE = "loss.csv", ("loss.svg", "loss.png")
FOREIGN = "name another folder, or an empty one"


def demand_ours(place: Path) -> None:
    """Refuse a folder that holds something else than a training.

    Raises:
        OutputError: naming what it holds.
    """
    if not place.is_dir() or any((place / name).exists() for name in (DONE, BEGUN, CHOSEN)):
        return
    others = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("."))
    if others:
        raise OutputError(f"`{place}` holds no training, but `{others[0]}`", hint=FOREIGN)


def finished(place: Path) -> dict[str, Any] | None:
    """Return the record of a training that came to its end here; None where none did."""
    record = read(place / DONE)
    if record is not None and not has_finished(record):
        return None
    if record is not None and not isinstance(record.get("identity"), dict):
        raise StoreError(f"`{place / DONE}` is not the record of a training", hint=FOREIGN)
    return record


def begun(place: Path) -> dict[str, Any] | None:
    """What was begun here and has not ended."""
    return read(place / BEGUN)


def read(file: Path) -> dict[str, Any] | None:
    return read_json(file, StoreError, "`--overwrite` trains anew") if file.exists() else None


def demand_same(there: dict[str, Any], here: dict[str, Any], place: Path, *, began: bool = False) -> None:
    """Refuse a folder in which something else was trained.

    Raises:
        OutputError: naming the first difference, with both values.
    """
    name = next((name for name in {**here, **there} if there.get(name) != here.get(name)), None)
    if name is not None:
        what = "was begun" if began else "was done"
        raise OutputError(
            f"in `{place}` a training {what} with {name} `{there.get(name)}`, not `{here.get(name)}`",
            hint="name another folder, or train anew with `--overwrite`",
        )


def clear(place: Path, keep: Checkpoint | None) -> None:
    """Remove what an earlier training left, but the checkpoint to go on from."""
    (place / DONE).unlink(missing_ok=True)  # first: without it, nothing here counts as a model
    for name in (*CURVE, LOSSES, "config.json", "adapter_config.json"):
        (place / name).unlink(missing_ok=True)
    for file in (*place.glob("*.safetensors"), *place.glob("*.safetensors.index.json")):
        file.unlink()
    shutil.rmtree(place / NEW, ignore_errors=True)
    sweep_checkpoints(place / CHECKPOINTS, keep)
    if keep is None:
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)


def save(place: Path, parts: TuneParts, done: Trained, talk: Talk) -> None:
    """Model, tokenizer, losses and their curve; each file whole or not there."""
    new = place / NEW
    with writing(place):
        done.model.save_pretrained(str(new))
        parts.tokenizer.save_pretrained(str(new))
        (new / "README.md").unlink(missing_ok=True)  # PEFT's empty form
        for file in sorted(new.iterdir()):
            file.replace(place / file.name)
        new.rmdir()
    write_losses(place / LOSSES, done)
    try:
        for name in CURVE:
            plot_losses(done.losses, place / name, overwrite=True)
    except MissingExtraError as error:
        talk.say(f"note: no picture of the losses: {error}; {error.hint}")


def write_losses(path: Path, done: Trained) -> None:
    """Step, loss in nats per response token, learning rate."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("step", "loss", "learning_rate"))
    pairs = zip(done.losses, done.learning_rates, strict=True)
    table.writerows((step, repr(loss), repr(rate)) for step, (loss, rate) in enumerate(pairs, 1))
    with atomic(path, overwrite=True) as stream:
        stream.write(text.getvalue().encode(errors="backslashreplace"))
