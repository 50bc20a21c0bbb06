"""What a training tells while it runs, and when it leaves a checkpoint behind."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tithe.data.outfile import atomic
from tithe.lab.tune.batches import StepOrder
from tithe.lab.tune.checkpoints import COMPLETE, folder_of
from tithe.lab.tune.faults import NotFinite
from tithe.lab.tune.processes import agreed, is_main, wait

EVERY = 600.0  # seconds between checkpoints, where no number of steps is given


class Listener(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Progress of a training, its epochs to the order of examples, and its checkpoints.

    Args:
        order: of the examples; is told which epoch begins.
        save_steps: optimiser steps between checkpoints; None goes by the clock, 0 makes none.
        before: seconds trained before this process began.
        progress: is told of every step's sequences, and of the tokens read since this process began.
    """

    def __init__(
        self, order: StepOrder, save_steps: int | None, before: float, progress: Callable[[int, int], None]
    ) -> None:
        self.order, self.save_steps, self.before, self.progress = order, save_steps, before, progress
        self.tokens = 0
        self.began = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Trained in all, by this process and those before it."""
        return self.before + time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken = self.order.taken(state.global_step)
        self.tokens += int(self.order.lengths[taken].sum())
        self.progress(len(taken), self.tokens)
        if self.save_steps is None:
            control.should_save = agreed(time.monotonic() - self.saved > EVERY)
        elif self.save_steps:
            control.should_save = state.global_step % self.save_steps == 0
        if state.global_step >= state.max_steps:  # the model itself comes next
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Looks at the gradient that was just applied: called before a checkpoint would be made of it."""
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise NotFinite("gradient's norm", state.global_step, norm)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark a checkpoint as whole, when all processes have written theirs."""
        wait()
        folder = folder_of(Path(args.output_dir), state.global_step)
        if is_main():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody will read
            with atomic(folder / COMPLETE, overwrite=True) as stream:
                stream.write(json.dumps({"step": state.global_step, "seconds": self.seconds}).encode())
        self.saved = time.monotonic()
