"""Fine-tune a model on a data set, from settings to a model folder; resume, and report the plan and outcome."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.counts import note_sentences, remark_sentences
from tithe.errors import ModelError, OutputError
from tithe.extras import versions
from tithe.lab.tune.files import (
    BEGUN,
    CHECKPOINTS,
    DONE,
    Checkpoint,
    TuneResult,
    clear,
    demand_ours,
    demand_same,
    last_checkpoint,
    read_begun,
    read_finished,
    save,
)
from tithe.lab.tune.optimiser_steps import FEW, NotFinite, steps_by_epochs
from tithe.lab.tune.processes import connect, is_main, wait
from tithe.lab.tune.settings import TrainingRecipe, TuneSettings
from tithe.lab.tune.train import Trained, TrainJob, demand_packages, train
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Schedule, Training, multiplies_bf16, open_training
from tithe.printable import counted
from tithe.report.reporter import Reporter
from tithe.report.terminal import TerminalReporter, console, say
from tithe.run.folder import RecordWriter, recorded_run, run_folder, write_json
from tithe.run.run_model import say_dequantised

if TYPE_CHECKING:
    from tithe.lab.tune.trackers import Tracking

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")
# Chooses rows to train on; returns them, and facts for the record.
Choose = Callable[[TrainRows, Path], tuple[TrainRows, Mapping[str, Any]]]


def tune(
    settings: TuneSettings, output: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> TuneResult:
    """Fine-tune a model on the responses of a data set.

    Args:
        settings: model, data set and recipe.
        output: folder of the trained model, or adapter. If a training with the same settings has finished there, its
            record is returned at once; an interrupted one resumes from its last checkpoint.
        overwrite: train anew, whatever training is there.
        reporter: gets messages and progress.

    Raises:
        TitheError: training failed; the folder of a training with other settings stays as it was.
    """
    demand_packages()
    check_trackers(settings)
    training = open_training(settings)
    reporter = reporter or Reporter()
    say_dequantised(training.model.files, reporter, training.recipe.dtype)
    return carry_out(training, training.identity(), output, overwrite=overwrite, reporter=reporter)


def carry_out(
    training: Training[Any],
    identity: dict[str, Any],
    output: Path,
    *,
    overwrite: bool,
    reporter: Reporter,
    choose: Choose | None = None,
) -> TuneResult:
    """Train in a folder, or return the training that finished there.

    Args:
        training: its parts.
        identity: what identifies the training.
        output: the folder.
        overwrite: train anew, whatever training is there.
        reporter: gets messages and progress.
        choose: chooses rows, once the folder is ours; None trains on all rows.

    Raises:
        TitheError: training failed.
    """
    demand_apart(training, output)
    with locked_folder(output) as place:
        demand_ours(place)
        there = read_finished(place)
        if there is not None and not overwrite:
            demand_same(there["identity"], identity, place)
            reporter.say(f"`{output}` already holds this training: nothing to do")
            return TuneResult(output, there)
        checkpoint = None if overwrite else resumable_checkpoint(place, training, identity)
        with training_account(place, training, there is None, reporter) as told:
            chosen: Mapping[str, Any] = {}
            rows, schedule = training.read(), None
            if choose is None:
                told.record = lambda: input_record(training, rows, chosen)
                schedule = training.schedule(rows)  # before the folder changes: an error leaves it as it was
            connect(training.device.type)
            wait()  # until all processes have looked at the folder, since it changes now
            if is_main():
                clear(place, keep=checkpoint)
                told.folder = place
                write_json(place / BEGUN, identity | {"devices": training.batches.devices})
            with clear_on_failure(place):
                if choose is not None:
                    rows, chosen = choose(rows, place)
                    told.record = lambda: input_record(training, rows, chosen)
                    schedule = training.schedule(rows)
                assert schedule is not None
                announce(training, rows, schedule, checkpoint, reporter)
                done = run_training(training, schedule, place, checkpoint, reporter)
                record = input_record(training, rows, chosen) | outcome_record(schedule, done, checkpoint)
                record["identity"] = identity
                if is_main():
                    save(place, done.model, training.model.tokenizer, done.losses, done.learning_rates, reporter)
                record |= told.finished()
            if is_main():  # the record comes before the checkpoints go: one of both is always there
                write_json(place / DONE, record)
                shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
                (place / BEGUN).unlink()
            wait()
    return TuneResult(output, record)


def demand_apart(training: Training[Any], output: Path) -> None:
    """Check that the output is not one of the inputs.

    Raises:
        OutputError: it is the model or the data set.
    """
    files = training.model.files
    if output.resolve() in (files.folder.resolve(), files.adapter, files.gguf):
        raise OutputError(f"the output `{output}` is the model itself", hint="name another folder with `-o`")
    if Path(training.settings.dataset).expanduser().resolve() == output.resolve():
        raise OutputError(f"the output `{output}` is the data set itself", hint="name another folder with `-o`")


@contextmanager
def training_account(place: Path, training: Training[Any], ours: bool, reporter: Reporter) -> Iterator[RecordWriter]:
    """Write to `tune.json` how the training ends.

    Args:
        place: its folder.
        training: its parts.
        ours: whether the folder has no finished model, whose record would have to stay.
        reporter: gets messages.
    """

    def stored() -> int:
        checkpoint = last_checkpoint(place / CHECKPOINTS)
        return checkpoint.step if checkpoint else 0

    with recorded_run(None, reporter, lambda: input_record(training, None, {}), name=DONE, stores="steps") as told:
        told.stored = stored
        try:
            yield told
        except KeyboardInterrupt:
            if is_main() and ours:  # interrupted while the data was read
                told.folder = place
            if not stored():
                reporter.say("no checkpoint was made: the same command begins anew")
            raise


@contextmanager
def locked_folder(output: Path) -> Iterator[Path]:
    """Lock the folder; the main process does so for all of them."""
    if is_main():
        with run_folder(output, "-o") as place:
            yield place
    else:
        yield output


def resumable_checkpoint(place: Path, training: Training[Any], identity: dict[str, Any]) -> Checkpoint | None:
    """Return the last checkpoint of an interrupted training; None if there is none.

    Raises:
        OutputError: the interrupted training has other settings.
    """
    there = read_begun(place)
    if there is None:
        return None
    checkpoint = last_checkpoint(place / CHECKPOINTS)
    if checkpoint is not None:  # without one, nothing would be lost
        demand_same(there, identity | {"devices": training.batches.devices}, place, began=True)
    return checkpoint


@contextmanager
def clear_on_failure(place: Path) -> Iterator[None]:
    """Empty the folder if the training fails before its first checkpoint."""
    try:
        yield
    except BaseException:
        if is_main() and last_checkpoint(place / CHECKPOINTS) is None:
            clear(place, keep=None)
            (place / BEGUN).unlink(missing_ok=True)
        raise


def run_training(
    training: Training[Any], schedule: Schedule, place: Path, checkpoint: Checkpoint | None, reporter: Reporter
) -> Trained:
    """Train, and save checkpoints only."""
    reporter.phase("training")
    reporter.expect(schedule.examples_after(checkpoint.step if checkpoint else 0))
    job = TrainJob(
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
        tracking=tracking_of(training.settings, place),
        say=reporter.say,
    )
    try:
        done = train(job)
    except NotFinite as error:
        raise ModelError(str(error), hint=loss_hint(place)) from error
    finally:
        reporter.done()
    training.source.input_check.check()
    return done


def check_trackers(settings: TuneSettings) -> None:
    """Refuse trackers that are unknown or not installed, before anything is read.

    Raises:
        TitheError: there is one.
    """
    if settings.report_to:
        from tithe.lab.tune.trackers import demand_trackers

        demand_trackers(settings.report_to)


def tracking_of(settings: TuneSettings, place: Path) -> Tracking | None:
    """Return where the training is logged; None if nowhere."""
    if not settings.report_to:
        return None
    from tithe.lab.tune.trackers import RUNS, Tracking, demand_trackers

    name = settings.run_name or place.resolve().name
    return Tracking(demand_trackers(settings.report_to), name, settings.project, place / RUNS)


def loss_hint(place: Path) -> str:
    """Return a hint for a loss that is not finite."""
    good = last_checkpoint(place / CHECKPOINTS)
    kept = f"the checkpoint after step {good.step} is kept: `{good.folder}`" if good else "no checkpoint was made"
    return f"{kept}; a lower `--learning-rate` or fp32 may help, in another folder or with `--overwrite`"


def input_record(training: Training[Any], rows: TrainRows | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model depends on, and counts of the rows read so far."""
    counts = {} if rows is None else {"counts": rows.counts()}
    return {**training.describe(), **chosen, "versions": dict(versions(LIBRARIES)), **counts}


def outcome_record(schedule: Schedule, done: Trained, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return steps, losses and speed of the training."""
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


def make_reporter() -> Reporter:
    """Return a reporter that prints for the main process, and a silent one for the others."""
    return TerminalReporter() if is_main() else Reporter()


def show_tuned(result: TuneResult) -> None:
    """Print losses, speed, and where the model lies."""
    if not is_main():
        return
    out, record = console(), result.record
    losses = record["losses"]
    say(out, f"loss {losses[0]:.4g} at the first step, {losses[-1]:.4g} at the last, nats per response token")
    rate = record["tokens_per_second"]
    speed = f", {rate:,.0f} tokens/s" if rate else ""
    say(out, f"{record['steps']:,} steps, {record['tokens']:,} tokens in {record['seconds']:.1f} s{speed}")
    say(out, f"recipe digest {record['recipe_digest']}; model: {result.folder}")


def announce(
    training: Training[Any], found: TrainRows, schedule: Schedule, checkpoint: Checkpoint | None, reporter: Reporter
) -> None:
    """Report what is trained, on what, on which device, and in how many steps."""
    recipe, batches, model, steps = training.recipe, training.batches, training.model, schedule.steps
    for reason, n in found.left_out.items():
        reporter.say(f"left out, {n:,}: {reason}")
    for sentence in (*training.source.dataset.notes, *note_sentences(found.counts())):
        reporter.say(sentence)
    for sentence in remark_sentences(found.remarks.as_dict()):
        reporter.say(sentence)
    if found.truncated_responses or found.truncated_prompts:
        reporter.say(
            f"cut at max length {recipe.max_length}: {counted(found.truncated_responses, 'response')} "
            f"({counted(found.response_tokens_cut, 'token')}), {counted(found.truncated_prompts, 'prompt')}"
        )
    name = training.renderer.describe()["template"]
    if found.ends_added:
        reporter.say(
            f"note: template `{name}` writes nothing after {found.ends_added:,} of {len(found.rows):,} responses: EOS "
            "is trained there, so that the model learns to stop"
        )
    if found.ends_missing:
        why = "there is no room for one" if model.tokenizer.eos_token_id is not None else "the tokenizer has no EOS"
        reporter.say(
            f"note: no end of the turn is trained after {found.ends_missing:,} of {len(found.rows):,} responses: "
            f"template `{name}` writes none and {why}, so the model does not learn there to stop"
        )
    what = f"a LoRA adapter of {model.name}" if recipe.use_peft else f"all weights of {model.name}"
    dtype = recipe.dtype + (", multiplied in bf16" if recipe.bf16 and recipe.dtype != "bf16" else "")
    examples = counted(len(found.rows), "example")
    reporter.say(f"training {what} in {dtype} on {training.device}, recipe `{recipe.name}`, on {examples}")
    packed = f" rows of {len(schedule.sequences):,}" if recipe.packing else ""
    layout = f"{batches.devices} device{'s' * (batches.devices > 1)} x {batches.each} x {batches.passes} passes"
    reporter.say(f"{steps:,} optimiser step{'s' * (steps > 1)}, each of {batches.step}{packed} ({layout})")
    if steps < FEW:
        reporter.say(
            "note: so few optimiser steps, warm-up and decay included, may hardly move the model: "
            + more_steps(recipe, len(schedule.sequences), steps)
        )
    if recipe.bf16 and training.device.type == "cpu" and not multiplies_bf16(training.device):
        reporter.say("note: this CPU does not multiply in bf16, fp32 is faster here: `--no-bf16`")
    if checkpoint is not None:
        reporter.say(f"resuming from the checkpoint after step {checkpoint.step}")


def more_steps(recipe: TrainingRecipe, rows: int, steps: int) -> str:
    """Say what would give more optimiser steps: a smaller batch, or more epochs or examples."""
    if recipe.max_steps > 0:
        return f"`max_steps` is {recipe.max_steps:,}"
    batch = recipe.train_batch_size
    while batch > 1 and steps_by_epochs(rows, batch, recipe.num_train_epochs) < FEW:
        batch //= 2
    made = steps_by_epochs(rows, batch, recipe.num_train_epochs)
    if made >= FEW:
        return f"a batch of {batch} makes {made:,}"
    smaller = f"a batch of {batch} makes {made:,}, and " if made > steps else ""
    return f"{smaller}more epochs or examples make more"
