"""One training of a head: what it reads, which side a prompt is on, and the fit itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.engine.heads.base import chosen_layers
from tithe.errors import DataError, SettingsError
from tithe.lab.heads.head_run import HeadRun
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import SIDE_NAMES, Rows, Tiers, demand_disjoint, split_by_prompt
from tithe.lab.heads.tier_states import TierStates

if TYPE_CHECKING:
    from tithe.engine.heads.base import StateHead

SOME = 2000  # responses, of which AUC by layer is found where a network is trained
OF_A_CNN = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
OF_CHANCE = ("validation_share", "test_share")


@dataclass
class Fit:
    """One training.

    Attributes:
        sides: places of the prompts' responses on each side.
        layer_aucs: of each hidden state, where that was looked at.
    """

    settings: HeadSettings
    parts: HeadRun
    states: TierStates
    sides: dict[str, Rows] = field(init=False)
    layer_aucs: Mapping[int, float] = field(default_factory=dict, init=False)

    def probe(self) -> tuple[StateHead, dict[str, Any]]:
        """The linear head; it takes the validation side too, since it chooses by cross-validation."""
        from tithe.lab.heads.fit_probe import fit_probe

        means, s = self.states.means(), self.settings
        tiers = self.states.tiers
        self.sides = sides_of(tiers, s)
        rows = np.sort(np.concatenate([self.sides["train"], self.sides["validation"]]))
        self.parts.reporter.say(f"cross-validation over {means.shape[1]} hidden states of {len(rows):,} responses")
        fit = fit_probe(means[rows], tiers.labels[rows], tiers.prompts[rows], layers=s.layers, seed=s.seed)
        self.layer_aucs = fit.layer_aucs
        return fit.head, {name: fact for name, fact in fit.as_dict().items() if name != "layer_aucs"}

    def cnn(self) -> tuple[StateHead, dict[str, Any]]:
        """The paper's network."""
        from tithe.lab.heads.fit_cnn import fit_cnn

        self.states.likelihoods()
        s, parts, tiers = self.settings, self.parts, self.states.tiers
        self.sides = sides_of(tiers, s)
        self.layer_aucs = self.by_layer()
        model = parts.load().model
        count, width = model.layers.count, parts.of.shape[1]
        layers = chosen_layers(s.layers or "all", count)
        parts.reporter.phase("training the head")
        parts.reporter.expect(len(self.sides["train"]) * s.num_train_epochs)
        try:
            fit = fit_cnn(
                lambda places: self.states.states(places, layers),
                tiers.labels,
                self.sides["train"],
                self.sides["validation"],
                count=count,
                width=width,
                layers=layers,
                epochs=s.num_train_epochs,
                seed=s.seed,
                device=model.device,
                learning_rate=s.learning_rate,
                batch=s.per_device_train_batch_size,
                progress=lambda step, steps, loss: parts.reporter.progress(s.per_device_train_batch_size, 0),
            )
        finally:
            parts.reporter.done()
        return fit.head, fit.as_dict()

    def by_layer(self) -> dict[int, float]:
        """AUC of each hidden state by itself, on some of the training side: a network says nothing of that."""
        from tithe.lab.heads.fit_probe import layer_aucs

        rows, tiers = self.sides["train"], self.states.tiers
        if len(rows) > SOME:
            rows = np.sort(np.random.default_rng(self.settings.seed).choice(rows, SOME, replace=False))
        places, means = self.states.some_means(rows.tolist())
        try:
            return layer_aucs(means, tiers.labels[places], tiers.prompts[places], seed=self.settings.seed)
        except DataError as error:  # the head can do without
            self.parts.reporter.say(f"note: no AUC by layer: {error}")
            return {}


def sides_of(tiers: Tiers, settings: HeadSettings) -> dict[str, Rows]:
    """Places on each side; a prompt is on one alone.

    Raises:
        DataError: the data's own split has a prompt on two sides, or a side that is needed is empty.
    """
    if tiers.sides is not None:
        sides = {name: np.flatnonzero(tiers.sides == name) for name in SIDE_NAMES}
        demand_disjoint(tiers.prompts, sides)
        if not len(sides["train"]):
            raise DataError(f"no response is on the side `train` by the column `{settings.split_column}`")
        return sides
    shares = (1 - settings.validation_share - settings.test_share, settings.validation_share, settings.test_share)
    if shares[0] <= 0:
        raise SettingsError(
            f"nothing is left to train on: {settings.validation_share:g} of the prompts for validation and "
            f"{settings.test_share:g} for the test"
        )
    return split_by_prompt(tiers.prompts, shares=shares, names=SIDE_NAMES, seed=settings.seed)


def check_settings(settings: HeadSettings) -> None:
    """Refuse settings that nothing would read.

    Raises:
        SettingsError: naming both.
    """
    given = settings.model_fields_set
    pairs = [(name, "`kind` is `probe`") for name in OF_A_CNN if settings.kind == "probe"]
    pairs += [(name, "`split_column` says where prompts stand") for name in OF_CHANCE if settings.split_column]
    for name, why in pairs:
        if name in given and getattr(settings, name) != HeadSettings.model_fields[name].default:
            raise SettingsError(f"`{name}` is given, and {why}: nothing reads it", hint="leave one of the two out")
    both = set(settings.high_tier) & set(settings.low_tier)
    if both:
        raise SettingsError(f"`{min(both)}` is given as a name of the high tier and of the low one")
