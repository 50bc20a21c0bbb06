"""Fine-tune a model on a data set: from settings to a folder that can be loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.errors import ModelError
from tithe.extras import versions
from tithe.lab.tune.checkpoints import Checkpoint, last_checkpoint
from tithe.lab.tune.faults import NotFinite
from tithe.lab.tune.folder import (
    BEGUN,
    CHECKPOINTS,
    DONE,
    begun,
    clear,
    demand_ours,
    demand_same,
    finished,
    save,
)
from tithe.lab.tune.parts import TuneParts
from tithe.lab.tune.processes import is_main, meet, wait
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.talk import announce
from tithe.lab.tune.train import Job, Trained, demand_packages, train
from tithe.report.reporter import Talk
from tithe.run.folder import Account, account, run_folder, write_json

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")


@dataclass(frozen=True)
class TuneResult:
    """A trained model, and what is known of it.

    Args:
        folder: where it lies: safetensors, tokenizer, `tune.json`, `loss.csv`, `loss.svg` and `loss.png`.
        record: settings, recipe and its digest, counts, steps, losses (nats per token), seconds.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)


def tune(settings: TuneSettings, output: Path, *, overwrite: bool = False, talk: Talk | None = None) -> TuneResult:
    """Fine-tune a model on the responses of a data set.

    Args:
        settings: what, on what, and how.
        output: folder of the trained model, or adapter. Where a training with the same settings has ended, its record
            is given back at once; where one was interrupted, it goes on from its last checkpoint.
        overwrite: train anew, whatever training is there.
        talk: who listens.

    Raises:
        TitheError: whatever stops it; the folder of a training with other settings stays as it was.
    """
    demand_packages()
    return carry_out(TuneParts(settings), output, overwrite=overwrite, talk=talk or Talk())


def carry_out(parts: TuneParts, output: Path, *, overwrite: bool, talk: Talk) -> TuneResult:
    """`tune`, from its parts on."""
    parts.check(output)
    identity = parts.identity()
    with locked(output) as place:
        demand_ours(place)
        there = finished(place)
        if there is not None and not overwrite:
            demand_same(there["identity"], identity, place)
            talk.say(f"`{output}` holds this training already: nothing to do")
            return TuneResult(output, there)
        checkpoint = None if overwrite else begun_before(place, parts, identity)
        with told_of(place, parts, there is None, talk) as told:
            parts.foresee()
            meet(parts.device.type)
            wait()  # all have looked; from here on the folder changes
            if is_main():
                clear(place, keep=checkpoint)
                told.folder = place
                write_json(place / BEGUN, identity | {"devices": parts.batches.devices})
            with nothing_left(place):
                parts.prepare(place, talk, overwrite=overwrite)
                announce(parts, checkpoint, talk)
                record = trained(parts, place, checkpoint, talk) | {"identity": identity, **told.finished()}
            if is_main():
                write_json(place / DONE, record)
                shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
                (place / BEGUN).unlink()
            wait()
    return TuneResult(output, record)


@contextmanager
def told_of(place: Path, parts: TuneParts, ours: bool, talk: Talk) -> Iterator[Account]:
    """Keep the account of a training in `tune.json`.

    Args:
        place: its folder.
        parts: of it.
        ours: whether no finished model lies there, whose record stays as long as the model does.
        talk: who listens.
    """

    def stored() -> int:
        checkpoint = last_checkpoint(place / CHECKPOINTS)
        return checkpoint.step if checkpoint else 0

    with account(None, talk, lambda: basics(parts), name=DONE, stores="steps") as told:
        told.stored = stored
        try:
            yield told
        except KeyboardInterrupt:
            if is_main() and ours:  # while the data was read; settings that cannot be leave nothing in the folder
                told.folder = place
            if not stored():
                talk.say("no checkpoint was made: the same command begins anew")
            raise


@contextmanager
def locked(output: Path) -> Iterator[Path]:
    """The folder, locked by the main process for all of them."""
    if is_main():
        with run_folder(output, "-o") as place:
            yield place
    else:
        yield output


def begun_before(place: Path, parts: TuneParts, identity: dict[str, Any]) -> Checkpoint | None:
    """Where an interrupted training stood; None where there was none, or it had made no checkpoint.

    Raises:
        OutputError: another training was begun here.
    """
    there = begun(place)
    if there is None:
        return None
    checkpoint = last_checkpoint(place / CHECKPOINTS)
    if checkpoint is not None:  # else nothing would be lost by whatever comes now
        demand_same(there, identity | {"devices": parts.batches.devices}, place, began=True)
    return checkpoint


@contextmanager
def nothing_left(place: Path) -> Iterator[None]:
    """Of a training that ends before its first checkpoint nothing stays in the folder."""
    try:
        yield
    except BaseException:
        if is_main() and last_checkpoint(place / CHECKPOINTS) is None:
            clear(place, keep=None)
            (place / BEGUN).unlink(missing_ok=True)
        raise


def trained(parts: TuneParts, place: Path, checkpoint: Checkpoint | None, talk: Talk) -> dict[str, Any]:
    """Train and save; the record of it."""
    before = checkpoint.step if checkpoint else 0
    talk.phase("training")
    talk.expect(sum(len(parts.order.taken(step)) for step in range(before + 1, parts.steps + 1)))
    job = Job(
        model=parts.model(),
        tokenizer=parts.tokenizer,
        rows=parts.sequences,
        recipe=parts.recipe,
        batches=parts.batches,
        seed=parts.settings.seed,
        device=parts.device.type,
        place=place / CHECKPOINTS,
        progress=talk.progress,
        resume=checkpoint,
    )
    try:
        done = train(job)
    except NotFinite as error:
        raise ModelError(str(error), hint=way_out(place)) from error
    finally:
        talk.done()
    parts.watch.check()
    record = describe(parts, done, checkpoint)
    if is_main():
        save(place, parts, done, talk)
    return record


def way_out(place: Path) -> str:
    """What can be done about a loss that is no number."""
    good = last_checkpoint(place / CHECKPOINTS)
    kept = f"the checkpoint after step {good.step} is kept: `{good.folder}`" if good else "no checkpoint was made"
    return f"{kept}; a lower `--learning-rate` or fp32 may help, in another folder or with `--overwrite`"


def basics(parts: TuneParts) -> dict[str, Any]:
    """Return what the model depends on, and what was counted as far as it was read."""
    counts = {"counts": parts.rows.counts()} if "rows" in vars(parts) else {}
    return {**parts.describe(), "versions": dict(versions(LIBRARIES)), **counts}


def describe(parts: TuneParts, done: Trained, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What the model depends on, and how the training went."""
    tokens = sum(int(parts.order.lengths[parts.order.taken(step)].sum()) for step in range(1, parts.steps + 1))
    return {
        **basics(parts),
        "steps": parts.steps,
        "resumed_after_step": checkpoint.step if checkpoint else None,
        "losses": done.losses,
        "learning_rates": done.learning_rates,
        "seconds": round(done.seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / done.seconds, 1) if done.seconds else None,
        "logits": "of response tokens alone" if done.narrow else "as TRL computes them",
    }
