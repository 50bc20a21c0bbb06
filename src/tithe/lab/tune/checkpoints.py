"""Checkpoints of a training that has not ended: which one to go on from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tithe.errors import StoreError
from tithe.foreign import foreign, read_json

COMPLETE = "complete.json"  # written last: a checkpoint without it is of a process that was killed over it


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stood.

    Args:
        folder: with weights, optimiser, schedule and random states.
        step: optimiser steps done.
        seconds: trained until then.
    """

    folder: Path
    step: int
    seconds: float


def folder_of(place: Path, step: int) -> Path:
    """As the trainer names it."""
    return place / f"checkpoint-{step}"


def last_checkpoint(place: Path) -> Checkpoint | None:
    """The latest whole one; None where there is none."""
    found = []
    for file in place.glob(f"checkpoint-*/{COMPLETE}"):
        hint = f"remove the folder `{file.parent}`: the training goes on from the checkpoint before it"
        told = read_json(file, StoreError, hint)
        with foreign(StoreError, f"`{file}` is damaged", hint):
            found.append(Checkpoint(file.parent, int(told["step"]), float(told["seconds"])))
    return max(found, key=lambda one: one.step, default=None)


def sweep_checkpoints(place: Path, keep: Checkpoint | None = None) -> None:
    """Remove all but one: the trainer would count half ones as its own."""
    for folder in place.glob("checkpoint-*"):
        if keep is None or folder != keep.folder:
            shutil.rmtree(folder)
