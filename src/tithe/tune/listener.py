"""What a training tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from tithe.tune.batches import StepOrder


class Listener(TrainerCallback):  # type: ignore[misc]
    """Losses, learning rates and progress of a training, and the epoch to its order.

    Args:
        order: of the examples; is told which epoch begins.
        progress: is told of every step's examples, and of the tokens read so far.
    """

    def __init__(self, order: StepOrder, progress: Callable[[int, int], None]) -> None:
        self.order, self.progress = order, progress
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.tokens = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken = self.order.taken(state.global_step)
        self.tokens += int(self.order.lengths[taken].sum())
        self.progress(len(taken), self.tokens)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.learning_rates.append(float(logs["learning_rate"]))
