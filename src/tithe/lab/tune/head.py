"""The output layer on response tokens alone: on a CPU, logits of a prompt cost as much as those of a response."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch

from tithe.lab.tune.rows import UNREAD

# Names under which configs keep what is done to logits besides.
SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


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
def agrees(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether both heads give one NLL: a config does not tell all that a model may do with its logits.

    Args:
        model: with a narrow head, in evaluation mode.
        inputs: a batch, with labels.
    """
    narrow = model(**inputs, use_cache=False, narrow_head=True)["loss"]
    labels = inputs["labels"][:, 1:]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1].float()
    whole = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNREAD, reduction="sum")
    return bool(torch.isclose(narrow, whole, rtol=1e-3))
