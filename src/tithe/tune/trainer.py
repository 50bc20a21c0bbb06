"""TRL's SFTTrainer, with what a selection's training needs of its own: order, loss on responses alone, silence."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from tithe.errors import ModelError
from tithe.tune.batches import StepOrder
from tithe.tune.rows import UNREAD

SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class ResponseTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on responses.

    Args:
        order: of the examples.
        rest: as for `SFTTrainer`.
    """

    loss_is_scaled_for_ga = True  # over all tokens of an optimiser step, whatever the forward passes

    def __init__(self, *, order: StepOrder, **rest: Any) -> None:
        self.order = order
        super().__init__(**rest)
        self.model_accepts_loss_kwargs = True  # tokens of the whole step are counted, whatever the model's signature
        self.narrow = self.args.device.type == "cpu" and is_plain(self.model)
        if self.narrow:
            add_narrow_head(unwrapped(self.model))

    def _send_telemetry(self) -> None:
        """TRL tells its makers which model type is trained on what; we do not."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """A checkpoint is no model to hand on."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> StepOrder:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean NLL of the optimiser step's response tokens: this pass's part of it.

        Raises:
            ModelError: it is not a number.
        """
        assert num_items_in_batch is not None
        if self.narrow:  # as TRL does on a GPU: no logits where no loss is taken
            inputs["use_cache"] = False
            loss = model(**inputs, narrow_head=True)["loss"] / torch.as_tensor(num_items_in_batch).clamp(min=1)
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        else:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise NotFinite(self.state.global_step + 1, loss.item())
        return loss


class NotFinite(ModelError):
    """The loss of a step is infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step}: nothing can be learned from there on",
            hint="a lower `--learning-rate`, or `fp32`; the last checkpoint is from before",
        )


def unwrapped(model: Any) -> Any:
    """The model itself, out of its adapter's wrapping."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_plain(model: Any) -> bool:
    """Whether logits are the output layer's products and nothing else: no cap, no scale, no router's loss."""
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
def head_is_true(model: Any, ids: Sequence[int], first: int) -> bool:
    """Whether both heads agree on an example: what `is_plain` looked for is not all that a model may do."""
    model.eval()
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    labels = torch.where(torch.arange(row.shape[1], device=row.device) < first, UNREAD, row)
    mask = torch.ones_like(row)
    narrow = model(input_ids=row, attention_mask=mask, labels=labels, narrow_head=True)["loss"]
    logits = model(input_ids=row, attention_mask=mask).logits[:, :-1].float()
    whole = torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], ignore_index=UNREAD, reduction="sum")
    model.train()
    return bool(torch.isclose(narrow, whole, rtol=1e-3))
