"""What a training is made of; heavy parts are made when first used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.files import Dataset, open_dataset
from tithe.data.render import Renderer, RenderSettings, make_renderer
from tithe.engine.sources import (
    BUNDLED,
    ModelSource,
    context_window,
    demand_embedded,
    embedded_ids,
    find_model,
    fingerprint,
    load_tokenizer,
)
from tithe.errors import DataError, OutputError, SettingsError, demand
from tithe.lab.tune.batches import Batches, StepOrder, lay_out, steps_in_all
from tithe.lab.tune.processes import devices
from tithe.lab.tune.recipe import LAYOUT, Recipe
from tithe.lab.tune.rows import Ending, TrainRow, TrainRows, read_rows
from tithe.lab.tune.settings import TuneSettings
from tithe.run.pool import named_dataset
from tithe.run.talk import Talk
from tithe.run.watch import Watch

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
        bf16, dtype = self.asked.bf16, self.asked.dtype
        good = self.device.type == "cuda" and self.multiplies_bf16
        if dtype == "auto":
            dtype = "bf16" if self.asked.use_peft and good else "fp32"
        return self.asked.model_copy(update={"bf16": good if bf16 is None else bf16, "dtype": dtype})

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the device does, and not by way of fp32."""
        from tithe.engine.devices import choose_dtype, dtype_name

        return dtype_name(choose_dtype("auto", self.device)) == "bf16"

    def check(self, output: Path) -> None:
        """Raise what can be known to be wrong before data is read."""
        demand(self.recipe, self.batches)
        if output.resolve() in (self.source.folder.resolve(), self.source.adapter):
            raise OutputError(f"the output `{output}` is the model itself", hint="name another folder with `-o`")
        if Path(self.settings.dataset).expanduser().resolve() == output.resolve():
            raise OutputError(f"the output `{output}` is the data set itself", hint="name another folder with `-o`")

    @cached_property
    def device(self) -> torch.device:
        from tithe.engine.devices import choose_device

        device = choose_device(self.settings.device)
        if device.type == "cuda" and device.index:
            raise SettingsError(
                f"training takes no device index, and `{device}` has one",
                hint=f"set CUDA_VISIBLE_DEVICES={device.index} and give `--device cuda`",
            )
        return device

    def foresee(self) -> None:
        """Raise what reading the data shows to be wrong, before anything in the folder is touched."""
        demand(self.steps)

    def prepare(self, place: Path, talk: Talk, *, overwrite: bool) -> None:
        """What has to be found out in the folder before the training; here nothing."""

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
                "no model given",
                hint="`--model` takes a folder or a hub id; `--model pocket` is bundled, for trying out",
            )
        source = find_model(self.settings.model)
        if source.adapter is not None and self.asked.use_peft:
            raise SettingsError(
                f"`{source.name}` is an adapter, and an adapter cannot be trained on top of another one",
                hint="train all weights, `--no-use-peft`, or give a whole model",
            )
        return source

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def renderer(self) -> Renderer:
        return self.rendering(self.settings.eos)

    def rendering(self, eos: bool) -> Renderer:
        s = self.settings
        rendering = RenderSettings(
            template=s.template, max_length=self.asked.max_length, bos=s.bos, eos=eos, truncation=s.truncation
        )
        return make_renderer(self.tokenizer, rendering, context_window=context_window(self.source, self.tokenizer))

    @cached_property
    def ending(self) -> Ending | None:
        """For responses after which the template writes nothing; None where no end is to be trained."""
        if not self.settings.eos:
            return None
        return Ending(self.rendering(False), self.tokenizer.eos_token_id, self.asked.max_length)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    @cached_property
    def rows(self) -> TrainRows:
        """The examples to be trained on, in ids."""
        return self.read()

    def read(self) -> TrainRows:
        """The examples of the data set in ids.

        Raises:
            DataError: none can be trained on.
            ModelError: the tokenizer gives ids that the model does not embed.
        """
        found = read_rows(self.dataset, self.renderer, self.ending)
        if not found.rows:
            reason, n = found.left_out.most_common(1)[0]
            raise DataError(
                f"none of the {found.examples:,} examples of `{self.settings.dataset}` can be trained on: "
                f"{n:,} of them, {reason}",
                hint=f"`max_length` is {self.asked.max_length}",
            )
        demand_embedded(self.source.name, max(max(row.ids) for row in found.rows), embedded_ids(self.source))
        return found

    @cached_property
    def batches(self) -> Batches:
        return lay_out(self.asked, devices(), self.device.type)

    @cached_property
    def sequences(self) -> list[TrainRow]:
        """What a batch is made of: the examples, or rows of several."""
        if not self.asked.packing:
            return self.rows.rows
        from tithe.lab.tune.packing import packed

        return packed(self.rows.rows, self.asked.max_length)

    @cached_property
    def steps(self) -> int:
        return steps_in_all(len(self.sequences), self.asked)

    @cached_property
    def order(self) -> StepOrder:
        return StepOrder([len(row.ids) for row in self.sequences], self.batches, self.settings.seed)

    def model(self) -> Any:
        """The model to be trained, all of it from its files."""
        from tithe.engine.devices import DTYPES
        from tithe.engine.loading import read_weights

        model = read_weights(self.source, DTYPES[self.recipe.dtype], self.settings.trust_remote_code)
        if self.recipe.use_peft:  # what an adapter's file will call its base
            model.name_or_path = model.config._name_or_path = base_name(self.source)
        return model

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
        return {
            "settings": self.settings.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_digest": self.recipe.digest(),
            "batches": {**asdict(self.batches), "passes": self.batches.passes},
            "device": str(self.device),
            "dataset": self.watch.describe(),
            "template": self.renderer.describe(),
            "model": {"name": self.source.name, "folder": str(self.source.folder), "fingerprint": self.fingerprint},
        }


def base_name(source: ModelSource) -> str:
    """Under which an adapter will find its base model: its bundled name, hub id or folder."""
    named = source.name in BUNDLED or source.revision is not None
    return source.name if named else str(source.folder)
