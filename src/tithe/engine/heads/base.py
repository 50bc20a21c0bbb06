"""What every head is: it reads hidden states layer by layer, and gives one margin a response. No torch here."""

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
    """Numbers of the hidden states that a choice names: 0 is the embedding output, count - 1 the last.

    Args:
        which: all, the last one, or a third of them; the back third takes what the division leaves over.
        count: hidden states of the model, `num_hidden_layers + 1`.

    Raises:
        SettingsError: no such choice, or fewer than three states have no thirds.
    """
    if which not in get_args(LayerChoice):
        raise SettingsError(f"no choice of layers `{which}`", hint=did_you_mean(which, get_args(LayerChoice)))
    third = count // 3
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
    """Reads one batch of responses. Memory holds one layer at a time."""

    def take(self, layer: int, rows: torch.Tensor) -> None:
        """One layer's states; called once for every layer of the head, in ascending order.

        Args:
            layer: which hidden state.
            rows: (tokens of all responses, width), one response after another; not kept.
        """

    def found(self) -> torch.Tensor:
        """What `StateHead.margins` is made of, where the states are: (responses, ...) float32."""


class StateHead(ABC):
    """Weights that turn the hidden states of a response into a margin, z_high - z_low.

    Args:
        layers: which hidden states are read, ascending.
        count: hidden states of the model.
        width: of one state.
    """

    kind: ClassVar[str]

    def __init__(self, layers: Sequence[int], count: int, width: int) -> None:
        demand_layers(layers, count)
        self.layers, self.count, self.width = tuple(layers), count, width

    @abstractmethod
    def to(self, device: torch.device | str) -> StateHead:
        """The same head, reading on this device."""

    @abstractmethod
    def reader(self, lengths: Sequence[int]) -> LayerReader:
        """A reader of a batch of responses with so many tokens each.

        Raises:
            DataError: a response without a token; it has no states to read.
        """

    @abstractmethod
    def margins(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """How much more each response looks like the high tier than like the low one: (responses,).

        Args:
            found: by a reader, on the CPU.
        """

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name, float32 on the CPU."""

    @classmethod
    @abstractmethod
    def of(cls, weights: Mapping[str, torch.Tensor], layers: Sequence[int], count: int, width: int) -> Self:
        """A head of these weights.

        Raises:
            ModelError: a weight is missing, is too much, or has another shape.
        """


class LayerOrderCheck:
    """Whether a reader is given every layer, once and in order, with as many rows as there are tokens."""

    def __init__(self, layers: Sequence[int], width: int, lengths: Sequence[int]) -> None:
        empty = [place for place, tokens in enumerate(lengths) if tokens < 1]
        if empty:
            raise DataError(f"response {empty[0] + 1} of {len(lengths)} has no token, so no hidden state")
        self.shape = (sum(lengths), width)
        self.left = list(layers)

    def step(self, layer: int, rows: torch.Tensor) -> None:
        assert self.left and layer == self.left[0], f"layer {layer}, but {self.left[:1]} is next"
        assert tuple(rows.shape) == self.shape, f"{tuple(rows.shape)} rows, but {self.shape} are read"
        del self.left[0]

    def end(self) -> None:
        assert not self.left, f"layers {self.left} were not given"


def demand_layers(layers: Sequence[int], count: int) -> None:
    """Raises: ModelError, where these are not ascending numbers of hidden states."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ModelError(
            f"layers {list(layers)} are not ascending numbers of {count} hidden states",
            hint=f"0 is the embedding output, {count - 1} the last state",
        )


def demand_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Raises: ModelError, where a weight is missing, is too much, has another shape, or is not finite."""
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
            raise ModelError(f"`{name}` holds something that is no finite number", hint="train the head again")


def listed(names: Iterable[str], most: int = 4) -> str:
    """`a`, `b` and 3 more."""
    shown = [f"`{name}`" for name in names]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "") if shown else "nothing"
