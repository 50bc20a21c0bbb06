"""Fine-tune a model on a data set: from settings to a folder that can be loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.errors import OutputError, StoreError
from tithe.run.describe import versions
from tithe.run.folder import run_folder, write_json
from tithe.run.talk import Talk
from tithe.run.tune_parts import TuneParts
from tithe.run.tune_settings import TuneSettings
from tithe.tune.batches import FEW
from tithe.tune.train import Job, demand_packages, train

DONE, BEGUN = "tune.json", "begun.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")


@dataclass(frozen=True)
class TuneResult:
    """A trained model, and what is known of it.

    Args:
        folder: where it lies: safetensors, tokenizer, `tune.json`.
        record: settings, recipe and its digest, counts, steps, losses, seconds.
    """

    folder: Path
    record: dict[str, Any]


def tune(settings: TuneSettings, output: Path, *, overwrite: bool = False, talk: Talk | None = None) -> TuneResult:
    """Fine-tune a model on the responses of a data set.

    Args:
        settings: what, on what, and how.
        output: folder of the trained model, or adapter. Where a training with the same settings has ended, its record
            is given back at once; where one was interrupted, it goes on.
        overwrite: train anew, whatever is there.
        talk: who listens.

    Raises:
        TitheError: whatever stops it; the folder of a training with other settings stays as it was.
    """
    parts, talk = TuneParts(settings), talk or Talk()
    demand_packages()
    identity = parts.identity()
    with run_folder(output, "-o") as place:
        there = None if overwrite else finished(place)
        if there is not None:
            demand_same(there["identity"], identity, place)
            return TuneResult(output, there)
        record = trained(parts, place, identity, talk)
    return TuneResult(output, record)


def trained(parts: TuneParts, place: Path, identity: dict[str, Any], talk: Talk) -> dict[str, Any]:
    """Train, save, and write the record, which comes last."""
    found, batches, steps = parts.rows, parts.batches, parts.steps
    for reason, n in found.left_out.items():
        talk.say(f"left out, {n:,}: {reason}")
    if found.truncated_responses or found.truncated_prompts:
        talk.say(
            f"cut at max length {parts.recipe.max_length}: {found.truncated_responses:,} responses "
            f"({found.response_tokens_cut:,} tokens), {found.truncated_prompts:,} prompts"
        )
    talk.say(
        f"training {parts.source.name} on {len(found.rows):,} examples, {parts.recipe.name}: {steps:,} optimiser steps "
        f"of {batches.step} ({batches.devices} x {batches.each} x {batches.passes}) on {parts.device}"
    )
    if steps < FEW:
        talk.say(f"note: {steps} optimiser steps are few: the model will hardly move; a smaller batch makes more")
    talk.expect(sum(len(parts.order.taken(step)) for step in range(1, steps + 1)))
    job = Job(
        model=parts.model(),
        tokenizer=parts.tokenizer,
        rows=found.rows,
        recipe=parts.recipe,
        batches=batches,
        steps=steps,
        seed=parts.settings.seed,
        device=parts.device.type,
        place=place / "checkpoints",
        progress=talk.progress,
    )
    try:
        done = train(job)
    finally:
        talk.done()
    parts.watch.check()
    done.model.save_pretrained(str(place))
    parts.tokenizer.save_pretrained(str(place))
    record = {
        **parts.describe(),
        "identity": identity,
        "versions": dict(versions(LIBRARIES)),
        "counts": found.counts(),
        "steps": steps,
        "losses": done.losses,
        "seconds": round(done.seconds, 2),
        "tokens": done.tokens,
        "tokens_per_second": round(done.tokens / done.seconds, 1) if done.seconds else None,
    }
    write_json(place / DONE, record)
    return record


def finished(place: Path) -> dict[str, Any] | None:
    """The record of a training that ended here; None where none did."""
    try:
        text = (place / DONE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read `{place / DONE}`: {error.strerror}") from error
    try:
        record = json.loads(text)
        assert isinstance(record["identity"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise StoreError(
            f"`{place / DONE}` is not the record of a training", hint="name another folder, or `--overwrite`"
        ) from None
    return dict(record)


def demand_same(there: dict[str, Any], here: dict[str, Any], place: Path) -> None:
    """Refuse a folder in which something else was trained.

    Raises:
        OutputError: naming the first difference, with both values.
    """
    name = next((name for name in {**here, **there} if there.get(name) != here.get(name)), None)
    if name is not None:
        raise OutputError(
            f"`{place}` holds a training with {name} `{there.get(name)}`, not `{here.get(name)}`",
            hint="name another folder, or train anew with `--overwrite`",
        )
