"""Set up a training: find model, data, recipe and layout before anything is read; then read rows and plan steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tithe.data.render import Renderer, RenderSettings, make_renderer
from tithe.engine.model_source import BUNDLED, ModelSource, demand_known_ids, embedded_ids, find_model
from tithe.errors import DataError, SettingsError
from tithe.lab.tune.optimiser_steps import Batches, StepOrder, lay_out, steps_in_all
from tithe.lab.tune.processes import devices
from tithe.lab.tune.settings import LAYOUT, TrainingRecipe, TuneSettings
from tithe.lab.tune.train_rows import EosEnding, TrainRow, TrainRows, pack_rows, read_rows
from tithe.run.run_model import RunModel
from tithe.run.source import DataSource

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound=TuneSettings)


@dataclass(frozen=True)
class Training(Generic[S]):
    """A training that was checked as far as possible without loading weights or reading examples.

    Args:
        settings: of the training.
        asked: the recipe as given.
        recipe: the recipe on this device, with `bf16` and `dtype` decided.
        device: that trains.
        batches: layout of an optimiser step.
        model: files of the model.
        source: the data set.
        renderer: turns examples into ids.
    """

    settings: S
    asked: TrainingRecipe
    recipe: TrainingRecipe
    device: torch.device
    batches: Batches
    model: RunModel
    source: DataSource
    renderer: Renderer

    def read(self) -> TrainRows:
        """Read the data set and return its examples as ids.

        Raises:
            DataError: no example can be trained on.
            ModelError: the tokenizer has ids that the model does not embed.
        """
        ending = None
        if self.settings.eos:  # for responses without an end of turn
            plain = make_training_renderer(self.settings, self.asked, self.model, eos=False)
            ending = EosEnding(plain, self.model.tokenizer.eos_token_id, self.asked.max_length)
        found = read_rows(self.source.dataset, self.renderer, ending)
        if not found.rows:
            reason, n = found.left_out.most_common(1)[0]
            raise DataError(
                f"none of the {found.examples:,} examples of `{self.settings.dataset}` can be trained on: "
                f"{n:,} of them, {reason}",
                hint=f"`max_length` is {self.asked.max_length}",
            )
        files = self.model.files
        demand_known_ids(files.name, max(max(row.ids) for row in found.rows), embedded_ids(files))
        return found

    def schedule(self, rows: TrainRows) -> Schedule:
        """Return which rows each optimiser step takes.

        Raises:
            SettingsError: there would be no optimiser step, or none with a learning rate above 0.
        """
        sequences = rows.rows
        if self.asked.packing:
            sequences = pack_rows(sequences, self.asked.max_length)
        steps = steps_in_all(len(sequences), self.asked)
        return Schedule(sequences, steps, StepOrder([len(r.ids) for r in sequences], self.batches, self.settings.seed))

    def load(self) -> Any:
        """Load the weights in the recipe's dtype."""
        from tithe.engine.devices import DTYPES
        from tithe.engine.loading import read_weights

        model = read_weights(self.model.files, DTYPES[self.recipe.dtype], self.settings.trust_remote_code)
        if self.recipe.use_peft:  # the name of the base model in the adapter's file
            model.name_or_path = model.config._name_or_path = base_name(self.model.files)
        return model

    def identity(self) -> dict[str, Any]:
        """Return everything that identifies a training, flat, by the names that users know."""
        s, recipe = self.settings, self.asked.model_dump(mode="json", exclude=set(LAYOUT))
        rendering = {f"template {name}": value for name, value in self.renderer.describe().items()}
        return {
            "model fingerprint": self.model.fingerprint,
            "data set digest": self.source.input_check.digest,
            **{name: getattr(s, name) for name in ("format", "turns", "split", "limit", "seed")},
            **recipe,
            **rendering,
        }

    def describe(self) -> dict[str, Any]:
        """Return what the trained model depends on, for the record."""
        files = self.model.files
        return {
            "settings": self.settings.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_digest": self.recipe.digest(),
            "batches": {**asdict(self.batches), "passes": self.batches.passes},
            "device": str(self.device),
            "dataset": self.source.input_check.describe(),
            "template": self.renderer.describe(),
            "model": {"name": files.name, "folder": str(files.place), "fingerprint": self.model.fingerprint},
        }


@dataclass(frozen=True)
class Schedule:
    """The steps of a training.

    Args:
        sequences: rows of a batch: examples, or several packed into one.
        steps: number of optimiser steps.
        order: of the sequences.
    """

    sequences: Sequence[TrainRow]
    steps: int
    order: StepOrder

    def examples_after(self, step: int) -> int:
        """Return how many sequences the steps after this one read."""
        return sum(len(self.order.taken(n)) for n in range(step + 1, self.steps + 1))

    @property
    def tokens(self) -> int:
        """Tokens that all steps read."""
        return sum(int(self.order.lengths[self.order.taken(n)].sum()) for n in range(1, self.steps + 1))


def open_training(settings: S) -> Training[S]:
    """Find and check all parts of a training, before anything is written.

    Raises:
        TitheError: a part is missing, or two do not fit together.
    """
    asked, device = settings.full_recipe(), training_device(settings.device)
    good = device.type == "cuda" and multiplies_bf16(device)
    # Weights that are trained stay in fp32: small steps would be rounded away in bf16.
    dtype = asked.dtype
    if dtype == "auto":
        dtype = "bf16" if asked.use_peft and good else "fp32"
    recipe = asked.model_copy(update={"bf16": good if asked.bf16 is None else asked.bf16, "dtype": dtype})
    batches = lay_out(asked, devices(), device.type)
    if settings.model is None:
        raise SettingsError(
            "no model given",
            hint="`--model` takes a folder, GGUF file or hub id; `--model pocket` is bundled, for trying out",
        )
    files = find_model(settings.model)
    if files.adapter is not None and asked.use_peft:
        raise SettingsError(
            f"`{files.name}` is an adapter, and an adapter cannot be trained on top of another one",
            hint="train all weights, `--no-use-peft`, or give a whole model",
        )
    model = RunModel(files, settings.device, trust_remote_code=settings.trust_remote_code)
    renderer = make_training_renderer(settings, asked, model, eos=settings.eos)
    return Training(settings, asked, recipe, device, batches, model, DataSource.open(settings), renderer)


def training_device(name: str) -> torch.device:
    """Return the device that a process trains on.

    Raises:
        SettingsError: there is no such device, or it has an index.
    """
    from tithe.engine.devices import choose_device

    device = choose_device(name)
    if device.type == "cuda" and device.index:  # transformers' trainer knows no device index
        raise SettingsError(
            f"training takes no device index, and `{device}` has one",
            hint=f"set CUDA_VISIBLE_DEVICES={device.index} and give `--device cuda`",
        )
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has native bf16 products; a CPU is timed."""
    from tithe.engine.devices import choose_dtype, dtype_name

    return dtype_name(choose_dtype("auto", device)) == "bf16"


def make_training_renderer(settings: TuneSettings, recipe: TrainingRecipe, model: RunModel, *, eos: bool) -> Renderer:
    """Return the renderer of a training; `eos` writes the end-of-turn marker, too."""
    s = settings
    rendering = RenderSettings(
        template=s.template, max_length=recipe.max_length, bos=s.bos, eos=eos, truncation=s.truncation
    )
    return make_renderer(model.tokenizer, rendering, context_window=model.window)


def base_name(source: ModelSource) -> str:
    """Return the name by which an adapter finds its base model: a bundled name, a hub id, a folder or a GGUF file."""
    named = source.name in BUNDLED or source.revision is not None
    return source.name if named else str(source.place)
