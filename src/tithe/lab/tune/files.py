"""The folder of a training: its records, its checkpoints, and the model that is saved in it."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.outfile import atomic, writing
from tithe.errors import MissingExtraError, OutputError, StoreError
from tithe.foreign import foreign, read_json
from tithe.lab.curve import loss_chart, write_chart
from tithe.report.reporter import Reporter
from tithe.run.folder import has_finished

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DONE, BEGUN, CHECKPOINTS, NEW = "tune.json", "begun.json", "checkpoints", ".new"
CHOSEN = "chosen.json"  # the examples of a warm-up; survives an interruption
LOSSES, CURVE = "loss.csv", ("loss.svg", "loss.png")
FOREIGN = "name another folder, or an empty one"
# What `save` writes besides losses and their plot: a model or an adapter, and whatever files a tokenizer has.
SAVED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
COMPLETE = "complete.json"  # written last: without it, the process was killed while it wrote the checkpoint


@dataclass(frozen=True)
class TuneResult:
    """A trained model and its record.

    Args:
        folder: that holds it: safetensors, tokenizer, `tune.json`, `loss.csv`, `loss.svg` and `loss.png`.
        record: settings, recipe and its digest, counts, steps, losses (nats per token), seconds.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some step.

    Args:
        folder: with weights, optimiser, schedule and random states.
        step: optimiser steps done.
        seconds: of training until then.
    """

    folder: Path
    step: int
    seconds: float


def checkpoint_folder(place: Path, step: int) -> Path:
    """Return the folder in which transformers' trainer puts a checkpoint."""
    return place / f"checkpoint-{step}"


def last_checkpoint(place: Path) -> Checkpoint | None:
    """Return the latest complete checkpoint; None if there is none."""
    found = []
    for file in place.glob(f"checkpoint-*/{COMPLETE}"):
        hint = f"remove the folder `{file.parent}`: the training goes on from the checkpoint before it"
        told = read_json(file, StoreError, hint)
        with foreign(StoreError, f"`{file}` is damaged", hint):
            found.append(Checkpoint(file.parent, int(told["step"]), float(told["seconds"])))
    return max(found, key=lambda one: one.step, default=None)


def sweep_checkpoints(place: Path, keep: Checkpoint | None) -> None:
    """Remove all checkpoints but one: the trainer would count incomplete ones as its own."""
    for folder in place.glob("checkpoint-*"):
        if keep is None or folder != keep.folder:
            shutil.rmtree(folder)


def demand_ours(place: Path) -> None:
    """Check that a folder is empty or holds a training.

    Raises:
        OutputError: it holds something else, which the message names.
    """
    if not place.is_dir() or any((place / name).exists() for name in (DONE, BEGUN, CHOSEN)):
        return
    others = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("."))
    if others:
        raise OutputError(f"`{place}` holds no training, but `{others[0]}`", hint=FOREIGN)


def read_finished(place: Path) -> dict[str, Any] | None:
    """Return the record of the training that finished here; None if none did."""
    record = read_if_there(place / DONE)
    if record is not None and not has_finished(record):
        return None
    if record is not None and not isinstance(record.get("identity"), dict):
        raise StoreError(f"`{place / DONE}` is not the record of a training", hint=FOREIGN)
    return record


def read_begun(place: Path) -> dict[str, Any] | None:
    """Return the record of the training that began here and has not finished."""
    return read_if_there(place / BEGUN)


def read_if_there(file: Path) -> dict[str, Any] | None:
    return read_json(file, StoreError, "`--overwrite` trains anew") if file.exists() else None


def demand_same(there: dict[str, Any], here: dict[str, Any], place: Path, *, began: bool = False) -> None:
    """Check that the training in a folder has the settings given here.

    Raises:
        OutputError: it has not; the message names the first difference.
    """
    name = next((name for name in {**here, **there} if there.get(name) != here.get(name)), None)
    if name is not None:
        what = "was begun" if began else "was done"
        raise OutputError(
            f"`{place}` holds a training that {what} with {name} `{there.get(name)}`, not `{here.get(name)}`",
            hint="name another folder, or train anew with `--overwrite`",
        )


def clear(place: Path, keep: Checkpoint | None) -> None:
    """Remove what an earlier training left, except the checkpoint to resume from."""
    (place / DONE).unlink(missing_ok=True)  # first: without it, the folder does not count as a model
    for pattern in (*CURVE, LOSSES, *SAVED):
        for file in place.glob(pattern):
            file.unlink()
    shutil.rmtree(place / NEW, ignore_errors=True)
    sweep_checkpoints(place / CHECKPOINTS, keep)
    if keep is None:
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)


def save(
    place: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    losses: Sequence[float],
    learning_rates: Sequence[float],
    reporter: Reporter,
) -> None:
    """Write model, tokenizer, losses and their plot; no file is ever half written."""
    new = place / NEW
    # Save into a folder inside, then move: an interruption leaves no half-written model.
    with writing(place):
        model.save_pretrained(str(new))
        tokenizer.save_pretrained(str(new))
        (new / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        for file in sorted(new.iterdir()):
            file.replace(place / file.name)
        new.rmdir()
    write_losses(place / LOSSES, losses, learning_rates)
    try:
        chart = loss_chart(losses)
        for name in CURVE:
            write_chart(chart, place / name, overwrite=True)
    except MissingExtraError as error:
        reporter.say(f"note: no plot of the losses: {error}; {error.hint}")


def write_losses(path: Path, losses: Sequence[float], learning_rates: Sequence[float]) -> None:
    """Write step, loss in nats per response token, and learning rate as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("step", "loss", "learning_rate"))
    pairs = zip(losses, learning_rates, strict=True)
    # `repr` keeps all digits, so that equal trainings give equal files.
    table.writerows((step, repr(loss), repr(rate)) for step, (loss, rate) in enumerate(pairs, 1))
    with atomic(path, overwrite=True) as stream:
        stream.write(text.getvalue().encode(errors="backslashreplace"))
