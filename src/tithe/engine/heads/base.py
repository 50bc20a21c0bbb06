"""The interface of quality heads: they read hidden states layer by layer and give one margin per response.

Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias, get_args

from tithe.errors import DataError, ModelError, SettingsError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

LayerChoice: TypeAlias = Literal["all", "last", "front", "middle", "back"]


def chosen_layers(which: LayerChoice, count: int) -> tuple[int, ...]:
    """Return the numbers of the chosen hidden states: 0 is the embedding output, count - 1 the last.

    Args:
        which: all, the last one, or a third of them; the back third includes the remainder of the division.
        count: number of the model's hidden states, `num_hidden_layers + 1`.

    Raises:
        SettingsError: the choice is unknown, or is a third of fewer than three states.
    """
    if which not in get_args(LayerChoice):
        raise SettingsError(f"no choice of layers `{which}`", hint=did_you_mean(which, get_args(LayerChoice)))
    third = count // 3  # states of the front and the middle third
    if third == 0 and which not in ("all", "last"):
        raise SettingsError(f"{count} hidden states have no `{which}` third", hint="take `all` or `last`")
    begin, end = {
        "all": (0, count),
        "last": (count - 1, count),
        "front": (0, third),
        "middle": (third, 2 * third),
        "back": (2 * third, count),
    }[which]
    return tuple(range(begin, end))


class LayerReader(Protocol):
    """A reader of one batch of responses, which holds one layer's states at a time."""

    def take(self, layer: int, rows: torch.Tensor) -> None:
        """Take one layer's states; called once for each of the head's layers, in ascending order.

        Args:
            layer: number of the hidden state.
            rows: (tokens of all responses, width), one response after another; must not be kept.
        """

    def found(self) -> torch.Tensor:
        """Return the input of `StateHead.margins`, on the states' device: (responses, ...) float32."""


class StateHead(ABC):
    """A head that turns the hidden states of a response into a margin, z_high - z_low.

    Args:
        layers: numbers of the hidden states it reads, ascending.
        count: number of the model's hidden states.
        width: of one state.
    """

    kind: ClassVar[str]

    def __init__(self, layers: Sequence[int], count: int, width: int) -> None:
        demand_layers(layers, count)
        self.layers, self.count, self.width = tuple(layers), count, width

    @abstractmethod
    def to(self, device: torch.device | str) -> StateHead:
        """Return this head on a device."""

    @abstractmethod
    def reader(self, lengths: Sequence[int]) -> LayerReader:
        """Return a reader for a batch of responses, given the number of tokens of each.

        Raises:
            DataError: a response has no token and so no states to read.
        """

    @abstractmethod
    def margins(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return how much more each response resembles the high tier than the low one: (responses,).

        Args:
            found: a reader's output, on the CPU.
        """

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights by name, float32 on the CPU."""

    @classmethod
    @abstractmethod
    def of(cls, weights: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> Self:
        """Make a head from its weights.

        Raises:
            ModelError: a weight is missing, unknown, or has the wrong shape.
        """


class LayerOrderCheck:
    """A check that a reader gets every layer once and in order, with as many rows as there are tokens."""

    def __init__(self, layers: Sequence[int], width: int, lengths: Sequence[int]) -> None:
        # A mean or maximum over no tokens would be NaN or -inf without a reason.
        empty = [place for place, tokens in enumerate(lengths) if tokens < 1]
        if empty:
            raise DataError(f"response {empty[0] + 1} of {len(lengths)} has no token, so no hidden state")
        self.shape = (sum(lengths), width)
        self.left = list(layers)  # layers still to come

    def step(self, layer: int, rows: torch.Tensor) -> None:
        assert self.left and layer == self.left[0], f"layer {layer}, but {self.left[:1]} is next"
        assert tuple(rows.shape) == self.shape, f"{tuple(rows.shape)} rows, but {self.shape} are read"
        del self.left[0]

    def end(self) -> None:
        assert not self.left, f"layers {self.left} were not given"


def demand_layers(layers: Sequence[int], count: int) -> None:
    """Raise a ModelError unless these are ascending numbers of hidden states."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ModelError(
            f"layers {list(layers)} are not ascending numbers of {count} hidden states",
            hint=f"0 is the embedding output, {count - 1} the last state",
        )


def demand_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Raise a ModelError if a weight is missing, unknown, has the wrong shape, or is not finite."""
    import torch

    missing, strange = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing:
        raise ModelError(f"a `{kind}` head needs {listed(missing)}", hint=f"there is: {listed(sorted(weights))}")
    if strange:
        raise ModelError(f"a `{kind}` head has no {listed(strange)}", hint=f"it has: {listed(sorted(expected))}")
    for name, shape in expected.items():
        found = weights[name]
        if tuple(found.shape) != shape:
            raise ModelError(
                f"`{name}` has the shape {tuple(found.shape)}, it must have {shape}",
                hint="the head belongs to a model of another depth or width, or reads other layers",
            )
        if not found.dtype.is_floating_point or not torch.isfinite(found).all():
            raise ModelError(f"`{name}` holds values that are not finite numbers", hint="train the head again")


def listed(names: Iterable[str], most: int = 4) -> str:
    """Join names for a message: `a`, `b` and 3 more."""
    shown = [f"`{name}`" for name in names]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "") if shown else "nothing"
