"""What a training or a judgement of a head reads: the model, how responses are rendered, the tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tithe.data.render import Renderer
from tithe.engine.heads.files import HeadCard
from tithe.engine.measure.shape import size
from tithe.errors import SettingsError, demand
from tithe.lab.heads.settings import HeadSettings
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, EngineLoader
from tithe.run.method import Method
from tithe.run.run_model import RunModel, longest_pass, open_model, open_renderer
from tithe.run.source import DataSource

if TYPE_CHECKING:
    from tithe.engine.heads.base import StateHead


@dataclass(frozen=True)
class HeadModel:
    """The model that a head reads.

    Args:
        settings: of the training.
        model: its files.
        renderer: of the responses.
    """

    settings: HeadSettings
    model: RunModel
    renderer: Renderer

    @classmethod
    def open(cls, settings: HeadSettings) -> Self:
        """Find it.

        Raises:
            TitheError: there is none, or it cannot read what it is to read.
        """
        if settings.warmup:
            raise SettingsError("a head takes no `warmup`: it reads the model without a warm-up", hint="leave it out")
        if settings.model is None:
            raise SettingsError(
                "no model given", hint="`--model` takes a folder or a hub id: its hidden states are read"
            )
        model = open_model(settings)
        demand(model.weights_dtype)
        return cls(settings, model, open_renderer(settings, model, whole_response=Method.of(settings).whole_response))

    @property
    def shape(self) -> tuple[int, int]:
        """How many hidden states the model has, and how wide they are, by its config."""
        config = self.model.files.config
        config = config.get("text_config") or config
        return size(config, "num_hidden_layers", "n_layer") + 1, size(config, "hidden_size", "n_embd", "d_model")

    @property
    def max_length(self) -> int:
        """Tokens of the longest response with its prompt."""
        return longest_pass(self.settings.max_length, self.model)

    def describe(self) -> dict[str, Any]:
        """Return which model it is, for records."""
        return {"name": self.model.name, "fingerprint": self.model.fingerprint, "dtype": self.model.weights_dtype}

    def card(self, head: StateHead, training: Mapping[str, Any]) -> HeadCard:
        """Return what is written beside a head of this model."""
        return HeadCard.of(head, model=self.describe(), rendering=self.renderer.describe(), training=training)


@dataclass(frozen=True)
class HeadRun:
    """What a training or a judgement of a head reads.

    Args:
        of: the model.
        source: the tiers.
        load: loads the engine.
        reporter: who listens.
    """

    of: HeadModel
    source: DataSource
    load: EngineLoader
    reporter: Reporter

    @classmethod
    def open(cls, of: HeadModel, reporter: Reporter) -> Self:
        """Open the data set; the engine is loaded when it is first asked for."""
        source, engines = DataSource.open(of.settings), EngineCache(reporter, several=False)
        return cls(of, source, EngineLoader(engines, of.settings, source.dataset, of.model, None), reporter)
