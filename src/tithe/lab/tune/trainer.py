"""TRL's SFTTrainer, with what a selection's training needs of its own: order, loss on responses alone, silence."""

from __future__ import annotations

import math
from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer

from tithe.lab.tune.batches import StepOrder
from tithe.lab.tune.faults import NotFinite
from tithe.lab.tune.head import add_narrow_head, is_plain, unwrapped


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
