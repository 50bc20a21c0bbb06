"""TRL's SFTTrainer with a fixed order of examples, logits for response tokens only, and checkpoints by the clock.

On a CPU, logits of prompt tokens would cost as much as those of response tokens, and no loss reads them.
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
from tithe.lab.tune.files import COMPLETE, checkpoint_folder
from tithe.lab.tune.optimiser_steps import NotFinite, StepOrder
from tithe.lab.tune.processes import is_main, main_value, wait
from tithe.lab.tune.train_rows import UNREAD

EVERY = 600.0  # seconds between checkpoints, unless the recipe gives a number of steps
# Config entries of models that cap or scale their logits.
SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class ResponseTrainer(SFTTrainer):
    """Trains on responses.

    Args:
        order: of the examples.
        rest: arguments of `SFTTrainer`.
    """

    # Our loss is normalised over all tokens of an optimiser step: transformers must not divide it again.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, *, order: StepOrder, **rest: Any) -> None:
        self.order = order
        super().__init__(**rest)
        self.model_accepts_loss_kwargs = True  # else transformers would not count the tokens of the whole step
        self.narrow = self.args.device.type == "cpu" and is_plain(self.model)
        if self.narrow:
            add_narrow_head(unwrapped(self.model))

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report models and data sets to its makers."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no model card into checkpoints."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this forward pass's part of the mean NLL over the optimiser step's response tokens.

        Raises:
            NotFinite: the loss is infinite or NaN; raised before the weights change.
        """
        assert num_items_in_batch is not None and not return_outputs
        if self.narrow:  # logits of response tokens only, as TRL does on a GPU
            inputs["use_cache"] = False
            loss = model(**inputs, narrow_head=True)["loss"] / torch.as_tensor(num_items_in_batch).clamp(min=1)
            loss = loss * self.accelerator.num_processes  # undo DDP's mean over processes
        else:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[no-untyped-call]
        if not math.isfinite(loss.item()):
            raise NotFinite("loss", self.state.global_step + 1, loss.item())
        return loss


class Listener(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Reports progress, tells the order of examples which epoch it is, and makes checkpoints.

    Args:
        order: of the examples.
        save_steps: optimiser steps between checkpoints; None goes by the clock, 0 makes none.
        before: seconds of training before this process.
        progress: called after every step with its sequences, and the tokens read by this process so far.
    """

    def __init__(
        self, order: StepOrder, save_steps: int | None, before: float, progress: Callable[[int, int], None]
    ) -> None:
        self.order, self.save_steps, self.before, self.progress = order, save_steps, before, progress
        self.tokens = 0
        self.began = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, by this process and those before it."""
        return self.before + time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = int((state.epoch or 0) + 1e-6)  # a float that sums up fractions of an epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken = self.order.taken(state.global_step)
        self.tokens += int(self.order.lengths[taken].sum())
        self.progress(len(taken), self.tokens)
        if self.save_steps is None:
            control.should_save = main_value(time.monotonic() - self.saved > EVERY)
        elif self.save_steps:
            control.should_save = state.global_step % self.save_steps == 0
        if state.global_step >= state.max_steps:  # the finished model is saved next
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Check the gradient just applied; called before a checkpoint is made."""
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise NotFinite("gradient's norm", state.global_step, norm)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark a checkpoint as complete once all processes have written their part."""
        wait()
        folder = checkpoint_folder(Path(args.output_dir), state.global_step)
        if is_main():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            with atomic(folder / COMPLETE, overwrite=True) as stream:
                stream.write(json.dumps({"step": state.global_step, "seconds": self.seconds}).encode())
        self.saved = time.monotonic()


def unwrapped(model: Any) -> Any:
    """Return the model without PEFT's wrapper."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_plain(model: Any) -> bool:
    """Return whether logits are just the output layer's products: no cap, no scale, no router loss."""
    text = unwrapped(model).config.get_text_config()
    scaled = any(getattr(text, name, None) not in (None, 1.0) for name in SCALES)
    return not scaled and not hasattr(text, "output_router_logits")


def add_narrow_head(model: Any) -> None:
    """Let `model(..., narrow_head=True)` return the summed NLL of the labels, with logits at their positions only."""
    original = model.forward

    # `wraps` keeps the signature, by which the trainer decides which columns the model takes.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, narrow_head: bool = False, **kwargs: Any) -> Any:
        if not narrow_head:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]  # a state predicts the next token
        states = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # (batch, tokens - 1, width)
        there = labels != UNREAD
        logits = self.get_output_embeddings()(states[there]).float()  # (response tokens, vocabulary)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels[there], reduction="sum")}

    model.forward = types.MethodType(forward, model)


@torch.no_grad()
def heads_agree(model: Any, inputs: dict[str, Any]) -> bool:
    """Return whether narrow and full head give the same NLL; a config may not reveal all changes to logits.

    Args:
        model: with a narrow head, in evaluation mode.
        inputs: a batch, with labels.
    """
    narrow = model(**inputs, use_cache=False, narrow_head=True)["loss"]
    labels = inputs["labels"][:, 1:]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1].float()
    whole = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNREAD, reduction="sum")
    return bool(torch.isclose(narrow, whole, rtol=1e-3))
