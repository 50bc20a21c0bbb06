"""What a training is made of; heavy parts are made when first used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.files import Dataset, open_dataset
from tithe.data.render import Renderer, RenderSettings, make_renderer
from tithe.engine.sources import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.errors import DataError, SettingsError
from tithe.run.pool import named_dataset
from tithe.run.tune_settings import TuneSettings
from tithe.run.watch import Watch
from tithe.tune.batches import Batches, StepOrder, lay_out, steps_in_all
from tithe.tune.recipe import LAYOUT, Recipe
from tithe.tune.rows import TrainRows, read_rows
from tithe.tune.train import devices

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass
class TuneParts:
    """The parts of one training."""

    settings: TuneSettings

    @cached_property
    def asked(self) -> Recipe:
        """The recipe as asked for."""
        return self.settings.full_recipe()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as this device carries it out."""
        if self.asked.bf16 is not None:
            return self.asked
        from tithe.engine.model import choose_dtype, dtype_name

        mixed = self.device.type == "cuda" and dtype_name(choose_dtype("auto", self.device)) == "bf16"
        return self.asked.model_copy(update={"bf16": mixed})

    @cached_property
    def device(self) -> torch.device:
        from tithe.engine.model import choose_device

        device = choose_device(self.settings.device)
        if device.type == "cuda" and device.index:
            raise SettingsError(
                f"a training cannot be put on `{device}` by its number",
                hint=f"CUDA_VISIBLE_DEVICES={device.index} shows it that one alone",
            )
        return device

    @cached_property
    def dataset(self) -> Dataset:
        s = self.settings
        name = named_dataset(s.dataset)
        return open_dataset(name, format=s.format, turns=s.turns, split=s.split, strict=s.strict, limit=s.limit)

    @cached_property
    def watch(self) -> Watch:
        return Watch(self.dataset)

    @cached_property
    def source(self) -> ModelSource:
        if self.settings.model is None:
            raise SettingsError(
                "which model is to be trained is not said",
                hint="`--model` takes a folder or a hub id; `--model pocket` is bundled, for trying out",
            )
        return find_model(self.settings.model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def renderer(self) -> Renderer:
        s = self.settings
        rendering = RenderSettings(
            template=s.template, max_length=self.asked.max_length, bos=s.bos, eos=s.eos, truncation=s.truncation
        )
        return make_renderer(self.tokenizer, rendering, context_window=context_window(self.source, self.tokenizer))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    @cached_property
    def rows(self) -> TrainRows:
        """The examples in ids.

        Raises:
            DataError: none can be trained on.
        """
        found = read_rows(self.dataset, self.renderer)
        if not found.rows:
            reason, n = found.left_out.most_common(1)[0]
            raise DataError(
                f"none of the {found.examples:,} examples of `{self.settings.dataset}` can be trained on: "
                f"{n:,} of them, {reason}",
                hint=f"`max_length` is {self.asked.max_length}",
            )
        return found

    @cached_property
    def batches(self) -> Batches:
        return lay_out(self.asked, devices(), self.device.type)

    @cached_property
    def steps(self) -> int:
        return steps_in_all(len(self.rows.rows), self.asked)

    @cached_property
    def order(self) -> StepOrder:
        return StepOrder([len(row.ids) for row in self.rows.rows], self.batches, self.settings.seed)

    def model(self) -> Any:
        """The model to be trained, all of it from its files."""
        from tithe.engine.model import DTYPES, read_weights

        return read_weights(self.source, DTYPES[self.recipe.dtype], self.settings.trust_remote_code)

    def identity(self) -> dict[str, Any]:
        """What makes two trainings the same, flat, by the names that users know."""
        s, recipe = self.settings, self.asked.model_dump(mode="json", exclude=set(LAYOUT))
        rendering = {f"template {name}": value for name, value in self.renderer.describe().items()}
        return {
            "model fingerprint": self.fingerprint,
            "data set digest": self.watch.digest,
            **{name: getattr(s, name) for name in ("format", "turns", "split", "limit", "seed")},
            **recipe,
            **rendering,
        }

    def describe(self) -> dict[str, Any]:
        """For the record."""
        data = {"source": self.dataset.source, "format": self.dataset.format, "digest": self.watch.digest}
        if Path(self.dataset.source).exists():
            data["path"] = str(Path(self.dataset.source).resolve())
        return {
            "settings": self.settings.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_digest": self.recipe.digest(),
            "batches": {
                "step": self.batches.step,
                "devices": self.batches.devices,
                "per_device": self.batches.each,
                "passes": self.batches.passes,
            },
            "device": str(self.device),
            "dataset": data,
            "template": self.renderer.describe(),
            "model": {"name": self.source.name, "folder": str(self.source.folder), "fingerprint": self.fingerprint},
        }
