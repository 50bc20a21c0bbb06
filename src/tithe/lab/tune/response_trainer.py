"""TRL's SFTTrainer, with what a selection's training needs of its own: order, loss on responses alone, checkpoints.

The output layer reads response tokens alone: on a CPU, logits of a prompt cost as much as those of a response.
"""

from __future__ import annotations

import functools
import json
import math
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from tithe.data.outfile import atomic
from tithe.lab.tune.files import COMPLETE, folder_of
from tithe.lab.tune.optimiser_steps import NotFinite, StepOrder
from tithe.lab.tune.processes import agreed, is_main, wait
from tithe.lab.tune.train_rows import UNREAD

EVERY = 600.0  # seconds between checkpoints, where no number of steps is given
# Names under which configs keep what is done to logits besides.
SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class ResponseTrainer(SFTTrainer):
    """Trains on responses.

    Args:
        order: of the examples.
        rest: as for `SFTTrainer`.
    """

    # The loss is over all tokens of an optimiser step, whatever the forward passes.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, *, order: StepOrder, **rest: Any) -> None:
        self.order = order
        super().__init__(**rest)
        self.model_accepts_loss_kwargs = True  # tokens of the whole step are counted, whatever the model's signature
        self.narrow = self.args.device.type == "cpu" and is_plain(self.model)
        if self.narrow:
            add_narrow_head(unwrapped(self.model))

    def _send_telemetry(self) -> None:
        """TRL tells its makers what is trained on what; we do not."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """A checkpoint is no model to hand on."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean NLL of the optimiser step's response tokens: this pass's part of it.

        Raises:
            NotFinite: it is not a number; before anything is learned from it.
        """
        assert num_items_in_batch is not None and not return_outputs
        if self.narrow:  # as TRL does on a GPU: no logits where no loss is taken
            inputs["use_cache"] = False
            loss = model(**inputs, narrow_head=True)["loss"] / torch.as_tensor(num_items_in_batch).clamp(min=1)
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        else:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[no-untyped-call]
        if not math.isfinite(loss.item()):
            raise NotFinite("loss", self.state.global_step + 1, loss.item())
        return loss


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
        """Check the gradient that was just applied; called before a checkpoint would be made of it."""
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


def unwrapped(model: Any) -> Any:
    """Return the model without its adapter's wrapping."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_plain(model: Any) -> bool:
    """Return whether logits are the output layer's products and nothing else: no cap, no scale, no router's loss."""
    text = unwrapped(model).config.get_text_config()
    scaled = any(getattr(text, name, None) not in (None, 1.0) for name in SCALES)
    return not scaled and not hasattr(text, "output_router_logits")


def add_narrow_head(model: Any) -> None:
    """Let `model(..., narrow_head=True)` give the summed NLL of the labels, with logits at their places alone."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, narrow_head: bool = False, **kwargs: Any) -> Any:
        if not narrow_head:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        states = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, tokens - 1, width)
        there = labels != UNREAD
        logits = self.get_output_embeddings()(states[there]).float()  # (response tokens, vocabulary)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels[there], reduction="sum")}

    model.forward = types.MethodType(forward, model)


@torch.no_grad()
def agrees(model: Any, inputs: dict[str, Any]) -> bool:
    """Return whether both heads give one NLL: a config does not tell all that a model may do with its logits.

    Args:
        model: with a narrow head, in evaluation mode.
        inputs: a batch, with labels.
    """
    narrow = model(**inputs, use_cache=False, narrow_head=True)["loss"]
    labels = inputs["labels"][:, 1:]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1].float()
    whole = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNREAD, reduction="sum")
    return bool(torch.isclose(narrow, whole, rtol=1e-3))
