"""Settings of `tithe tune` and `tithe warmup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from tithe.errors import SettingsError
from tithe.lab.tune.recipe import Recipe, altered, named_recipe, recipe_from
from tithe.settings import NAMED_MODEL, ExampleSettings, PassSettings, SeedSettings, Truncation, read_yaml
from tithe.typed import Count, Flag, Texts, short_dtype


class TuneSettings(SeedSettings, PassSettings, ExampleSettings):
    """What is trained, on what, and how; a setting of the recipe that is given here wins over it.

    Args:
        model: folder or hub id; `pocket` is bundled, for trying out.
        truncation: what gives way to `max_length`: the `response`'s end, the `prompt`'s beginning, or `problem`, which
            leaves the example out.
        eos: train the end-of-turn marker too, so that the model learns to stop.
        recipe: `alpaca`, `cpqs-lora`, `warmup`, or a YAML file.
        seed: random seed of the order of the examples, an adapter's first weights and dropout.
        train_batch_size: sequences of an optimiser step, over all devices.
        per_device_train_batch_size: sequences of one forward pass; it changes no result.
        gradient_accumulation_steps: forward passes of an optimiser step; by default what the batch sizes give.
        learning_rate: learning rate at its highest.
        num_train_epochs: passes over the data.
        max_steps: optimiser steps, whatever the epochs.
        warmup_ratio: share of the steps in which the learning rate rises.
        lr_scheduler_type: how the learning rate falls: `linear`, `cosine`, `constant` or `constant_with_warmup`.
        weight_decay: weight decay of AdamW.
        max_grad_norm: norm that gradients are scaled down to; 0 leaves them.
        max_length: tokens of a sequence.
        packing: put several examples in a row of `max_length` tokens.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, about a third slower.
        dtype: dtype of the weights in memory: `auto`, `fp32` or `bf16`.
        bf16: multiply in bf16 (mixed precision).
        save_steps: optimiser steps between checkpoints; 0 for none, by default one every ten minutes.
        use_peft: train a LoRA adapter instead of all weights.
        lora_r: rank of the adapter.
        lora_alpha: scale of the adapter, over `lora_r`.
        lora_dropout: dropout on the adapter's input.
        lora_target_modules: modules that get an adapter; all linear ones by default; may be repeated.
    """

    model: Annotated[str | None, NAMED_MODEL] = None
    truncation: Truncation = "response"
    eos: bool = True
    recipe: Annotated[str, Flag(("-r",))] = "alpaca"
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
    dtype: Annotated[str | None, BeforeValidator(short_dtype)] = None  # type: ignore[assignment]
    bf16: bool | None = None
    save_steps: int | None = None
    use_peft: bool | None = None
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: Texts | None = None

    @property
    def altered(self) -> dict[str, Any]:
        """Return the settings of the recipe that were given here."""
        both = TuneSettings.model_fields.keys() & Recipe.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(both) if getattr(self, name) is not None}

    def full_recipe(self) -> Recipe:
        """Return the recipe with the settings given here.

        Raises:
            SettingsError: no such recipe or file, an unknown key in it, or a value that cannot be.
        """
        return altered(read_recipe(self.recipe), self.altered)


def read_recipe(name: str) -> Recipe:
    """Read a recipe by name, or from a YAML file.

    Raises:
        SettingsError: there is neither, it is not YAML, or has an unknown key.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return recipe_from(read_yaml(path), name)
    return named_recipe(name)


class WarmupSettings(TuneSettings):
    """The warm-up that IFD gives a model before it scores: which examples, and how it is trained on them.

    Args:
        records: examples to train on; the paper tries 100, 300, 500 and 1000.
        choose: how they are chosen: `kmeans`, from every cluster of like prompts some of middling perplexity, as in the
            paper; `distance`, from every cluster those nearest to its centre; `random`, by chance.
        clusters: clusters of like prompts; each gives `records / clusters` examples.
        encoder: what makes vectors of prompts: `self`, the model itself, `tfidf`, a folder or hub id, `file:x.npy`.
    """

    recipe: str = "warmup"
    records: Count = 1000
    choose: Literal["kmeans", "distance", "random"] = "kmeans"
    clusters: Count = 100
    encoder: str = "self"

    @property
    def each(self) -> int:
        """Return the number of examples from each cluster."""
        return self.records // self.clusters

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.choose != "random" and self.records % self.clusters:
            raise SettingsError(
                f"{self.records} records cannot be taken from {self.clusters} clusters in equal parts",
                hint=f"`--records {max(1, self.each) * self.clusters}`, or another number of `--clusters`",
            )
        return self
