"""Settings of `tithe tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from tithe.config import Settings, read_yaml
from tithe.lab.tune.recipe import Recipe, altered, named_recipe, recipe_from
from tithe.typed import Count, Seed


class TuneSettings(Settings):
    """What is trained, on what, and how; settings of the recipe that are given here win over it.

    Args:
        dataset: file, folder or hub id.
        format: record shape, or `auto`.
        turns: `last` assistant turn of a dialogue, or `all` of them.
        split: split of a hub data set.
        limit: read only so many records.
        strict: stop at the first bad row.
        model: bundled name, folder or hub id.
        template: `auto`, a named template or a Jinja file.
        truncation: what gives way to `max_length`: the `response`'s end, the `prompt`'s beginning, or `problem`.
        bos: `auto`, `always`, `never`.
        eos: train the end-of-turn marker too, so that the model learns to stop.
        recipe: `alpaca`, `cpqs-lora`, `warmup`, or a YAML file.
        device: `auto`, `cuda`, `mps`, `cpu`.
        seed: of the order of the examples, an adapter's first weights and dropout.
        trust_remote_code: run code that comes with the model.
        train_batch_size: sequences of an optimiser step, over all devices.
        per_device_train_batch_size: sequences of one forward pass.
        gradient_accumulation_steps: forward passes of an optimiser step.
        learning_rate: at its highest.
        num_train_epochs: passes over the data.
        max_steps: optimiser steps, whatever the epochs.
        warmup_ratio: share of the steps in which the learning rate rises.
        lr_scheduler_type: how it falls: `linear`, `cosine`, `constant` or `constant_with_warmup`.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        max_length: tokens of a sequence.
        packing: several examples in a row of `max_length` tokens.
        gradient_checkpointing: compute activations twice instead of keeping them.
        dtype: of the weights in memory: `fp32`, `bf16` or `fp16`.
        bf16: multiply in bf16 (mixed precision).
        save_steps: optimiser steps between checkpoints; 0 makes none.
        use_peft: train a LoRA adapter instead of all weights.
        lora_r: rank of the adapter.
        lora_alpha: its scale, over `lora_r`.
        lora_dropout: on its input.
        lora_target_modules: modules that get one.
    """

    dataset: str
    format: str = "auto"
    turns: Literal["last", "all"] = "last"
    split: str | None = None
    limit: Count | None = None
    strict: bool = False
    model: str | None = None
    template: str = "auto"
    truncation: Literal["response", "prompt", "problem"] = "response"
    bos: Literal["auto", "always", "never"] = "auto"
    eos: bool = True
    recipe: str = "alpaca"
    device: str = "auto"
    seed: Seed = 0
    trust_remote_code: bool = False
    train_batch_size: int | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    learning_rate: float | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    warmup_ratio: float | None = None
    lr_scheduler_type: str | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    max_length: int | None = None
    packing: bool | None = None
    gradient_checkpointing: bool | None = None
    dtype: str | None = None
    bf16: bool | None = None
    save_steps: int | None = None
    use_peft: bool | None = None
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: tuple[str, ...] | None = None

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def one_module(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def altered(self) -> dict[str, Any]:
        """Settings of the recipe that were given here."""
        both = TuneSettings.model_fields.keys() & Recipe.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(both) if getattr(self, name) is not None}

    def full_recipe(self) -> Recipe:
        """The recipe, with what was given here.

        Raises:
            SettingsError: no such recipe or file, an unknown key in it, or a value that cannot be.
        """
        return altered(read_recipe(self.recipe), self.altered)


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a YAML file.

    Raises:
        SettingsError: there is neither, it is not YAML, or has an unknown key.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return recipe_from(read_yaml(path), name)
    return named_recipe(name)
