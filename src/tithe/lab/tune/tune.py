"""Fine-tune a model on a data set: from settings to a folder that can be loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tithe.errors import ModelError, OutputError
from tithe.extras import versions
from tithe.lab.tune.files import (
    BEGUN,
    CHECKPOINTS,
    DONE,
    Checkpoint,
    TuneResult,
    begun,
    clear,
    demand_ours,
    demand_same,
    finished,
    last_checkpoint,
    save,
)
from tithe.lab.tune.optimiser_steps import NotFinite
from tithe.lab.tune.processes import is_main, meet, wait
from tithe.lab.tune.screen import announce
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.train import Job, Trained, demand_packages, train
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Schedule, Training, open_training
from tithe.report.reporter import Reporter
from tithe.run.folder import RecordWriter, recorded_run, run_folder, write_json

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")
# Takes some rows of the data set; returns them, and what the record says of the choice.
Choose = Callable[[TrainRows, Path], tuple[TrainRows, Mapping[str, Any]]]


def tune(
    settings: TuneSettings, output: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> TuneResult:
    """Fine-tune a model on the responses of a data set.

    Args:
        settings: what, on what, and how.
        output: folder of the trained model, or adapter. Where a training with the same settings has ended, its record
            is given back at once; where one was interrupted, it goes on from its last checkpoint.
        overwrite: train anew, whatever training is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops it; the folder of a training with other settings stays as it was.
    """
    demand_packages()
    training = open_training(settings)
    return carry_out(training, training.identity(), output, overwrite=overwrite, reporter=reporter or Reporter())


def carry_out(
    training: Training[Any],
    identity: dict[str, Any],
    output: Path,
    *,
    overwrite: bool,
    reporter: Reporter,
    choose: Choose | None = None,
) -> TuneResult:
    """Train in a folder, or find the training finished there.

    Args:
        training: its parts.
        identity: what makes two trainings equal.
        output: the folder.
        overwrite: train anew, whatever training is there.
        reporter: who listens.
        choose: takes some of the rows, once the folder is ours; None trains on all of them.

    Raises:
        TitheError: whatever stops it.
    """
    demand_apart(training, output)
    with locked(output) as place:
        demand_ours(place)
        there = finished(place)
        if there is not None and not overwrite:
            demand_same(there["identity"], identity, place)
            reporter.say(f"`{output}` holds this training already: nothing to do")
            return TuneResult(output, there)
        checkpoint = None if overwrite else begun_before(place, training, identity)
        with told_of(place, training, there is None, reporter) as told:
            chosen: Mapping[str, Any] = {}
            rows, schedule = training.read(), None
            if choose is None:
                told.record = lambda: basics(training, rows, chosen)
                schedule = training.schedule(rows)  # what it raises leaves the folder as it was
            meet(training.device.type)
            wait()  # all have looked; from here on the folder changes
            if is_main():
                clear(place, keep=checkpoint)
                told.folder = place
                write_json(place / BEGUN, identity | {"devices": training.batches.devices})
            with nothing_left(place):
                if choose is not None:
                    rows, chosen = choose(rows, place)
                    told.record = lambda: basics(training, rows, chosen)
                    schedule = training.schedule(rows)
                assert schedule is not None
                announce(training, rows, schedule, checkpoint, reporter)
                done = trained(training, schedule, place, checkpoint, reporter)
                record = basics(training, rows, chosen) | outcome(schedule, done, checkpoint) | {"identity": identity}
                if is_main():
                    save(place, done.model, training.model.tokenizer, done.losses, done.learning_rates, reporter)
                record |= told.finished()
            if is_main():
                write_json(place / DONE, record)
                shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
                (place / BEGUN).unlink()
            wait()
    return TuneResult(output, record)


def demand_apart(training: Training[Any], output: Path) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: the output is the model or the data set.
    """
    files = training.model.files
    if output.resolve() in (files.folder.resolve(), files.adapter):
        raise OutputError(f"the output `{output}` is the model itself", hint="name another folder with `-o`")
    if Path(training.settings.dataset).expanduser().resolve() == output.resolve():
        raise OutputError(f"the output `{output}` is the data set itself", hint="name another folder with `-o`")


@contextmanager
def told_of(place: Path, training: Training[Any], ours: bool, reporter: Reporter) -> Iterator[RecordWriter]:
    """Keep the account of a training in `tune.json`.

    Args:
        place: its folder.
        training: its parts.
        ours: whether no finished model lies there, whose record stays as long as the model does.
        reporter: who listens.
    """

    def stored() -> int:
        checkpoint = last_checkpoint(place / CHECKPOINTS)
        return checkpoint.step if checkpoint else 0

    with recorded_run(None, reporter, lambda: basics(training, None, {}), name=DONE, stores="steps") as told:
        told.stored = stored
        try:
            yield told
        except KeyboardInterrupt:
            if is_main() and ours:  # while the data was read; settings that cannot be leave nothing in the folder
                told.folder = place
            if not stored():
                reporter.say("no checkpoint was made: the same command begins anew")
            raise


@contextmanager
def locked(output: Path) -> Iterator[Path]:
    """Give the folder, locked by the main process for all of them."""
    if is_main():
        with run_folder(output, "-o") as place:
            yield place
    else:
        yield output


def begun_before(place: Path, training: Training[Any], identity: dict[str, Any]) -> Checkpoint | None:
    """Return the last checkpoint of an interrupted training; None where there is none.

    Raises:
        OutputError: another training was begun here.
    """
    there = begun(place)
    if there is None:
        return None
    checkpoint = last_checkpoint(place / CHECKPOINTS)
    if checkpoint is not None:  # else nothing would be lost by whatever comes now
        demand_same(there, identity | {"devices": training.batches.devices}, place, began=True)
    return checkpoint


@contextmanager
def nothing_left(place: Path) -> Iterator[None]:
    """Empty the folder where a training ends before its first checkpoint."""
    try:
        yield
    except BaseException:
        if is_main() and last_checkpoint(place / CHECKPOINTS) is None:
            clear(place, keep=None)
            (place / BEGUN).unlink(missing_ok=True)
        raise


def trained(
    training: Training[Any], schedule: Schedule, place: Path, checkpoint: Checkpoint | None, reporter: Reporter
) -> Trained:
    """Train; nothing is saved but checkpoints."""
    reporter.phase("training")
    reporter.expect(schedule.examples_after(checkpoint.step if checkpoint else 0))
    job = Job(
        model=training.load(),
        tokenizer=training.model.tokenizer,
        rows=schedule.sequences,
        recipe=training.recipe,
        batches=training.batches,
        seed=training.settings.seed,
        device=training.device.type,
        place=place / CHECKPOINTS,
        progress=reporter.progress,
        resume=checkpoint,
    )
    try:
        done = train(job)
    except NotFinite as error:
        raise ModelError(str(error), hint=way_out(place)) from error
    finally:
        reporter.done()
    training.source.input_check.check()
    return done


def way_out(place: Path) -> str:
    """Return what can be done about a loss that is no number."""
    good = last_checkpoint(place / CHECKPOINTS)
    kept = f"the checkpoint after step {good.step} is kept: `{good.folder}`" if good else "no checkpoint was made"
    return f"{kept}; a lower `--learning-rate` or fp32 may help, in another folder or with `--overwrite`"


def basics(training: Training[Any], rows: TrainRows | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model depends on, and what was counted as far as it was read."""
    counts = {} if rows is None else {"counts": rows.counts()}
    return {**training.describe(), **chosen, "versions": dict(versions(LIBRARIES)), **counts}


def outcome(schedule: Schedule, done: Trained, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return how the training went."""
    return {
        "steps": schedule.steps,
        "resumed_after_step": checkpoint.step if checkpoint else None,
        "losses": done.losses,
        "learning_rates": done.learning_rates,
        "seconds": round(done.seconds, 2),
        "tokens": schedule.tokens,
        "tokens_per_second": round(schedule.tokens / done.seconds, 1) if done.seconds else None,
        "logits": "of response tokens alone" if done.narrow else "as TRL computes them",
    }
