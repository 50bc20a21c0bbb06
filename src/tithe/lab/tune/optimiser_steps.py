"""Decide which examples each optimiser step takes, and how they are spread over devices and forward passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tithe.errors import ModelError, SettingsError
from tithe.lab.tune.settings import TrainingRecipe

Places = npt.NDArray[np.int64]
# Sequences of a forward pass; on a CPU a few of similar length stay in its cache.
PER_PASS = {"cpu": 4}
USUAL_PER_PASS = 8
FEW = 20  # optimiser steps; with fewer, warm-up and decay are over before the model has changed much


@dataclass(frozen=True)
class Batches:
    """The layout of an optimiser step; all layouts with the same `step` give the same gradient.

    Args:
        step: sequences of an optimiser step.
        devices: processes, each with a device.
        each: sequences of one forward pass on one device.
    """

    step: int
    devices: int
    each: int

    @property
    def passes(self) -> int:
        """Forward passes per device in an optimiser step."""
        return self.step // (self.devices * self.each)

    @property
    def width(self) -> int:
        """Sequences that all devices read at once."""
        return self.devices * self.each


def lay_out(recipe: TrainingRecipe, devices: int, device: str) -> Batches:
    """Return the layout of a recipe's batches on so many devices.

    Raises:
        SettingsError: the batch cannot be divided in this way.
    """
    step, each, passes = recipe.train_batch_size, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    if step % devices:
        raise SettingsError(
            f"a batch of {step} cannot be divided among {devices} devices",
            hint="give a `train_batch_size` that can, or start fewer processes",
        )
    share = step // devices
    if each is None:
        each = share // passes if passes else largest_part(share, PER_PASS.get(device, USUAL_PER_PASS))
    if share % each or (passes is not None and devices * each * passes != step):
        parts = f"{devices} device{'s' * (devices > 1)} of {each}" + (f", {passes} times" if passes else "")
        raise SettingsError(
            f"a batch of {step} cannot be made of {parts}",
            hint="`train_batch_size` = devices x `per_device_train_batch_size` x `gradient_accumulation_steps`",
        )
    return Batches(step, devices, each)


def largest_part(whole: int, most: int) -> int:
    """Return the largest divisor of a number that is at most `most`."""
    return next(n for n in range(min(whole, most), 0, -1) if whole % n == 0)


def steps_in_all(rows: int, recipe: TrainingRecipe) -> int:
    """Return the number of optimiser steps; the last one of an epoch takes the remaining examples.

    Raises:
        SettingsError: there is no step, or the only one has learning rate 0.
    """
    if not rows:
        raise SettingsError("no optimiser step: there is no example to train on")
    # As in transformers, `max_steps` above 0 overrides the epochs.
    steps = steps_by_epochs(rows, recipe.train_batch_size, recipe.num_train_epochs)
    if recipe.max_steps > 0:
        steps = recipe.max_steps
    if steps < 1 or recipe.max_steps == 0:
        what = "`max_steps` is 0" if recipe.max_steps == 0 else f"{recipe.num_train_epochs:g} epochs of {rows:,}"
        raise SettingsError(f"no optimiser step: {what}", hint="nothing would be learned; give at least 1")
    # The schedule starts at 0: with a warm-up, a single step would change nothing.
    if steps == 1 and recipe.warmup_ratio > 0 and recipe.lr_scheduler_type != "constant":
        raise SettingsError(
            f"one optimiser step of up to {recipe.train_batch_size}, and warm-up begins at learning rate 0: nothing "
            "would be learned",
            hint=f"a `train_batch_size` below {rows}, or `warmup_ratio: 0`",
        )
    return steps


def steps_by_epochs(rows: int, batch: int, epochs: float) -> int:
    """Return the number of optimiser steps in so many epochs; the last step of an epoch may be smaller."""
    return math.ceil(epochs * math.ceil(rows / batch))


class StepOrder:
    """The order of the examples: shuffled every epoch, and longest first within an optimiser step.

    Within a step, order changes only the padding: examples of similar length share a forward pass.

    Args:
        lengths: tokens of every example.
        batches: the layout.
        seed: random seed of the shuffling.
        blank: place of a row without a response, which pads the last batch for several devices (accelerate would repeat
            examples instead); None for one device.
    """

    def __init__(self, lengths: Sequence[int], batches: Batches, seed: int, blank: int | None = None) -> None:
        self.lengths, self.batches, self.seed, self.blank = np.asarray(lengths), batches, seed, blank
        self.epoch = 0
        self.known: tuple[int, list[Places]] = (-1, [])  # steps of the last epoch asked for

    def __len__(self) -> int:
        return len(self.lengths) + self.filling

    @property
    def filling(self) -> int:
        """Blank rows that give every device equally many rows of the last step."""
        return 0 if self.blank is None else -len(self.lengths) % self.batches.width

    def __iter__(self) -> Iterator[int]:
        for step in self.steps(self.epoch):
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()
        if self.blank is not None:
            yield from [self.blank] * self.filling

    def steps(self, epoch: int) -> list[Places]:
        """Return the places of the examples that each optimiser step of an epoch takes."""
        if self.known[0] == epoch:
            return self.known[1]
        # Seeded by epoch, so that a resumed training continues with the same order.
        drawn = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        steps = [drawn[begin : begin + self.batches.step] for begin in range(0, len(drawn), self.batches.step)]
        self.known = epoch, steps
        return steps

    def taken(self, step: int) -> Places:
        """Return the examples of optimiser step `step`, which counts from 1 over all epochs."""
        epoch, place = divmod(step - 1, math.ceil(len(self.lengths) / self.batches.step))
        return self.steps(epoch)[place]


class NotFinite(ModelError):
    """The loss or the gradient of a step is infinite or NaN.

    Args:
        what: loss or gradient.
        step: number of the optimiser step.
        value: of the loss or the gradient's norm.
    """

    def __init__(self, what: str, step: int, value: float) -> None:
        super().__init__(f"the {what} is {value} at step {step}: nothing can be learned from there on")
        self.step = step
