"""What a training says before it begins."""

from __future__ import annotations

from tithe.data.record_counts import note_sentences
from tithe.data.remarks import remark_sentences
from tithe.lab.tune.batches import FEW, steps_by_epochs
from tithe.lab.tune.checkpoints import Checkpoint
from tithe.lab.tune.parts import TuneParts
from tithe.lab.tune.recipe import Recipe
from tithe.printable import counted
from tithe.report.reporter import Talk


def announce(parts: TuneParts, checkpoint: Checkpoint | None, talk: Talk) -> None:
    """What is trained, on what, on which device, and in how many steps."""
    found, recipe, batches = parts.rows, parts.recipe, parts.batches
    for reason, n in found.left_out.items():
        talk.say(f"left out, {n:,}: {reason}")
    for sentence in (*parts.dataset.notes, *note_sentences(found.counts())):
        talk.say(sentence)
    for sentence in remark_sentences(found.remarks.as_dict()):
        talk.say(sentence)
    if found.truncated_responses or found.truncated_prompts:
        talk.say(
            f"cut at max length {recipe.max_length}: {counted(found.truncated_responses, 'response')} "
            f"({counted(found.response_tokens_cut, 'token')}), {counted(found.truncated_prompts, 'prompt')}"
        )
    name = parts.renderer.describe()["template"]
    if found.ends_added:
        talk.say(
            f"note: template `{name}` writes nothing after {found.ends_added:,} of {len(found.rows):,} responses: EOS "
            "is trained there, so that the model learns to stop"
        )
    if found.ends_missing:
        why = "there is no room for one" if parts.tokenizer.eos_token_id is not None else "the tokenizer has no EOS"
        talk.say(
            f"note: no end of the turn is trained after {found.ends_missing:,} of {len(found.rows):,} responses: "
            f"template `{name}` writes none and {why}, so the model does not learn there to stop"
        )
    what = f"a LoRA adapter of {parts.source.name}" if recipe.use_peft else f"all weights of {parts.source.name}"
    dtype = recipe.dtype + (", multiplied in bf16" if recipe.bf16 and recipe.dtype != "bf16" else "")
    examples = counted(len(found.rows), "example")
    talk.say(f"training {what} in {dtype} on {parts.device}, recipe `{recipe.name}`, on {examples}")
    packed = f" rows of {len(parts.sequences):,}" if recipe.packing else ""
    layout = f"{batches.devices} device{'s' * (batches.devices > 1)} x {batches.each} x {batches.passes} passes"
    talk.say(f"{parts.steps:,} optimiser step{'s' * (parts.steps > 1)}, each of {batches.step}{packed} ({layout})")
    if parts.steps < FEW:
        talk.say(
            "note: so few optimiser steps, warm-up and decay included, may hardly move the model: "
            + more_steps(recipe, len(parts.sequences), parts.steps)
        )
    if recipe.bf16 and parts.device.type == "cpu" and not parts.multiplies_bf16:
        talk.say("note: this CPU does not multiply in bf16, fp32 is faster here: `--no-bf16`")
    if checkpoint is not None:
        talk.say(f"goes on from the checkpoint after step {checkpoint.step}")


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
