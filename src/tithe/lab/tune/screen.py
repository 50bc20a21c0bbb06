"""Print a training's plan and outcome on stderr; of several processes only the main one does."""

from __future__ import annotations

from typing import Any

from tithe.data.counts import note_sentences, remark_sentences
from tithe.lab.tune.files import Checkpoint, TuneResult
from tithe.lab.tune.optimiser_steps import FEW, steps_by_epochs
from tithe.lab.tune.processes import is_main
from tithe.lab.tune.recipe import Recipe
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Schedule, Training, multiplies_bf16
from tithe.printable import counted
from tithe.report.reporter import Reporter
from tithe.report.terminal import TerminalReporter, console, say


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
    """Say what is trained, on what, on which device, and in how many steps."""
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
        reporter.say(f"goes on from the checkpoint after step {checkpoint.step}")


def more_steps(recipe: Recipe, rows: int, steps: int) -> str:
    """Say what would give more optimiser steps: a smaller batch as far as it goes, else more epochs or examples."""
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
