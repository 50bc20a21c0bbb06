"""Settings of `tithe tune` and `tithe warmup`, and the training recipes they start from, with TRL's names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ValidationError, model_validator

from tithe.errors import SettingsError, did_you_mean
from tithe.foreign import shown
from tithe.settings import NAMED_MODEL, ExampleSettings, PassSettings, SeedSettings, Truncation, read_yaml
from tithe.typed import (
    Count,
    Flag,
    Names,
    NotNegative,
    Positive,
    Share,
    Texts,
    Typed,
    checked,
    short_dtype,
    wrong_value,
)

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Steps = Annotated[int, checked(lambda n: n >= -1, "it must be 0 or more, or -1, which goes by the epochs")]
Scale = Annotated[int, checked(lambda n: n > 0, "it must be above 0")]
PassLength = Annotated[int, checked(lambda n: n >= 2, "a token is predicted from one before it: it must be at least 2")]
# These only affect the layout of the work: the same examples are in the same optimiser step for any values.
LAYOUT = ("name", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "save_steps")
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")


class TrainingRecipe(Typed):
    """Settings of a training, with TRL's names; `train_batch_size` is the same on one device as on eight.

    Args:
        name: of the recipe.
        train_batch_size: sequences of an optimiser step, over all devices and micro-batches.
        per_device_train_batch_size: sequences of one forward pass; None takes what suits the device. It does not
            change the result: the loss is a mean over all response tokens of an optimiser step.
        gradient_accumulation_steps: forward passes of an optimiser step; None follows from the batch sizes and devices.
        learning_rate: peak learning rate of AdamW.
        num_train_epochs: passes over the data.
        max_steps: optimiser steps, instead of epochs; -1 goes by the epochs.
        warmup_ratio: share of the steps in which the learning rate rises.
        lr_scheduler_type: how the learning rate falls afterwards.
        weight_decay: of AdamW; not of biases and norms.
        adam_beta1: of AdamW.
        adam_beta2: of AdamW.
        adam_epsilon: of AdamW.
        max_grad_norm: clip gradients to this norm; 0 does not clip.
        max_length: tokens of a sequence; the run's `truncation` decides what is cut.
        packing: put several examples into a row of `max_length` tokens; a batch counts rows then.
        gradient_checkpointing: compute activations twice instead of keeping them.
        dtype: of the weights in memory: `fp32`, `bf16`, or `auto`: bf16 for frozen weights under an adapter on a GPU,
            else fp32.
        bf16: multiply in bf16 with weights in `dtype` (mixed precision); None does so if a GPU can.
        save_steps: optimiser steps between checkpoints; 0 makes none, None makes one every ten minutes.
        use_peft: train a LoRA adapter instead of all weights.
        lora_r: rank of the adapter.
        lora_alpha: scale of the adapter, divided by `lora_r`.
        lora_dropout: dropout on the adapter's input.
        lora_target_modules: modules that get an adapter; None takes all linear ones except the output head.
    """

    name: str = "custom"
    train_batch_size: Count = 128
    per_device_train_batch_size: Count | None = None
    gradient_accumulation_steps: Count | None = None
    learning_rate: Positive = 2e-5
    num_train_epochs: NotNegative = 3.0
    max_steps: Steps = -1
    warmup_ratio: Share = 0.03
    lr_scheduler_type: Schedule = "cosine"
    weight_decay: NotNegative = 0.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NotNegative = 1.0
    max_length: PassLength = 512
    packing: bool = False
    gradient_checkpointing: bool = False
    dtype: Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(short_dtype)] = "auto"
    bf16: bool | None = None
    save_steps: int | None = None
    use_peft: bool = False
    lora_r: Count = 16
    lora_alpha: Scale = 32
    lora_dropout: Share = 0.05
    lora_target_modules: Names | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "the recipe") -> Self:
        """Check values and build the recipe.

        Args:
            values: by name.
            where: their source, for messages.

        Raises:
            SettingsError: an unknown key (with a suggestion), or an invalid value.
        """
        for key in map(str, values):
            if key not in cls.model_fields:
                raise SettingsError(
                    f"{where} has an unknown key `{shown(key)}`", hint=did_you_mean(key, cls.model_fields)
                )
        try:
            return cls(**values)
        except ValidationError as error:
            raise wrong_value(error, cls, where) from error

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.dtype == "bf16" and not self.use_peft:
            raise SettingsError(
                "`dtype` cannot be `bf16` where all weights are trained: small steps would be rounded away",
                hint="`dtype: fp32` and `bf16: true` keep weights whole and multiply in bf16",
            )
        if self.save_steps is not None and self.save_steps < 0:
            raise SettingsError(f"`save_steps` cannot be `{self.save_steps}`: it must be 0 or more")
        return self

    def digest(self) -> str:
        """Return 16 hex digits that change with every setting that affects the result."""
        return hashlib.blake2b(json.dumps(self.matters(), sort_keys=True).encode(), digest_size=8).hexdigest()

    def matters(self) -> dict[str, Any]:
        """Return the settings that affect the result: without the layout, and without LoRA's if it is off."""
        unread = LAYOUT if self.use_peft else (*LAYOUT, *LORA)
        values = self.model_dump(mode="json", exclude=set(unread))
        if self.max_steps > 0:
            del values["num_train_epochs"]  # nothing reads it
        return values


RECIPES: Mapping[str, TrainingRecipe] = {
    recipe.name: recipe
    for recipe in (
        # Taori et al. 2023, as the IFD and Superfiltering papers use it
        TrainingRecipe(name="alpaca"),
        # The CPQS paper's adapter
        TrainingRecipe(
            name="cpqs-lora",
            train_batch_size=16,
            learning_rate=5e-5,
            max_length=2048,
            bf16=True,
            use_peft=True,
            lora_r=16,
            lora_alpha=8,
        ),
        # IFD's warm-up: Li et al. 2024, arXiv 2308.12032, section 2.1
        TrainingRecipe(name="warmup", num_train_epochs=1.0),
    )
}


def named_recipe(name: str) -> TrainingRecipe:
    """Return a recipe by its name.

    Raises:
        SettingsError: no recipe has that name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"no recipe `{shown(name)}`, and no such file", hint=did_you_mean(str(name), RECIPES))
    return RECIPES[name]


def recipe_from(values: Mapping[str, Any], where: str) -> TrainingRecipe:
    """Make a recipe from a mapping; `extends` names one to start from.

    Raises:
        SettingsError: an unknown key or name, or an invalid value.
    """
    values = dict(values)
    base = values.pop("extends", None)
    start = {} if base is None else named_recipe(base).model_dump()
    return TrainingRecipe.of({**start, "name": where, **values}, where=f"recipe `{where}`")


def with_values(recipe: TrainingRecipe, values: Mapping[str, Any]) -> TrainingRecipe:
    """Return the recipe with some values replaced, and check it."""
    return TrainingRecipe.of({**recipe.model_dump(), **values}) if values else recipe


class TuneSettings(SeedSettings, PassSettings, ExampleSettings):
    """Model, data set and recipe of a training; a setting given here overrides the recipe's.

    Args:
        model: folder or hub id; `pocket` is bundled, for trying out.
        truncation: what is cut from examples longer than `max_length`, the `response`'s end or the `prompt`'s
            beginning; `problem` leaves them out.
        eos: train the end-of-turn marker too, so that the model learns to stop.
        recipe: `alpaca`, `cpqs-lora`, `warmup`, or a YAML file.
        seed: random seed of the order of the examples, an adapter's initial weights and dropout.
        train_batch_size: sequences of an optimiser step, over all devices.
        per_device_train_batch_size: sequences of one forward pass; it changes no result.
        gradient_accumulation_steps: forward passes of an optimiser step; by default what the batch sizes give.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the data.
        max_steps: optimiser steps, instead of epochs.
        warmup_ratio: share of the steps in which the learning rate rises.
        lr_scheduler_type: how the learning rate falls: `linear`, `cosine`, `constant` or `constant_with_warmup`.
        weight_decay: weight decay of AdamW.
        max_grad_norm: norm to clip gradients to; 0 does not clip.
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
        report_to: tracker that logs the training, by transformers' name: `trackio`, `wandb`, `mlflow`, `tensorboard`,
            or `all` that are installed; may be repeated; none by default.
        run_name: what the trackers call the run; the output's name by default.
        project: what the trackers call the project.
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
    report_to: Texts = ()
    run_name: str | None = None
    project: str = "tithe"

    @property
    def altered(self) -> dict[str, Any]:
        """The recipe's settings that were given here."""
        both = TuneSettings.model_fields.keys() & TrainingRecipe.model_fields.keys()
        return {name: getattr(self, name) for name in sorted(both) if getattr(self, name) is not None}

    def full_recipe(self) -> TrainingRecipe:
        """Return the recipe with the settings given here.

        Raises:
            SettingsError: no such recipe or file, an unknown key, or an invalid value.
        """
        return with_values(read_recipe(self.recipe), self.altered)


def read_recipe(name: str) -> TrainingRecipe:
    """Read a recipe by name, or from a YAML file.

    Raises:
        SettingsError: there is neither, or the file is not YAML or has an unknown key.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return recipe_from(read_yaml(path), name)
    return named_recipe(name)


class WarmupSettings(TuneSettings):
    """The warm-up that IFD gives a model before it scores: which examples, and how it is trained on them.

    Args:
        records: examples to train on; the paper tries 100, 300, 500 and 1000.
        choose: how they are chosen: `kmeans`, examples of middling perplexity from every cluster of similar prompts, as
            in the paper; `distance`, those nearest to the centre of every cluster; or `random`.
        clusters: clusters of similar prompts; each gives `records / clusters` examples.
        encoder: encoder of the prompts: `self`, the model itself, `tfidf`, a folder or hub id, `file:x.npy`.
    """

    recipe: str = "warmup"
    records: Count = 1000
    choose: Literal["kmeans", "distance", "random"] = "kmeans"
    clusters: Count = 100
    encoder: str = "self"

    @property
    def each(self) -> int:
        """Number of examples from each cluster."""
        return self.records // self.clusters

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.choose != "random" and self.records % self.clusters:
            raise SettingsError(
                f"{self.records} records cannot be taken from {self.clusters} clusters in equal parts",
                hint=f"`--records {max(1, self.each) * self.clusters}`, or another number of `--clusters`",
            )
        return self
