"""Hidden states as readouts: chosen tokens' states go layer by layer to a reader while the batch is on the device.

Layers are numbered as transformers numbers hidden states: 0 is what goes into the first block, the last one, `count`
less 1, is what the output head reads, after the final norm. A reader takes rows of one layer, adds what it wants to
what it has, and lets go of them, so that no more than one layer's states are held at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.copies import fetched, to
from tithe.engine.readouts.base import Readout
from tithe.records import Pass, Problem

ALL_GOOD = 1 << 30
Results: TypeAlias = Callable[[], Sequence[Any]]  # of a reader; called, they are waited for


class LogitsHead(Protocol):
    """The way from the last hidden state to logits."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, dim) -> (rows, vocabulary)."""


class StateReader(Protocol):
    """What one batch's states are given to."""

    def take(self, layer: int, rows: torch.Tensor) -> None:
        """(tokens, dim) of one layer, all sequences one after the other, in the model's dtype; layers ascend."""

    def results(self) -> Results:
        """One per sequence, for `Readout.read` as `view.found`; called once, after the last layer.

        A GPU may have the next batch by the time they are waited for: what is still to be computed on it is asked of
        it before this returns, and what is returned should not hold the reader.
        """


class StateReadout(Readout):
    """A readout of hidden states."""

    reads_nll: ClassVar[bool] = False

    @abstractmethod
    def layers(self, count: int) -> Sequence[int]:
        """Which hidden states it wants, of so many."""

    @abstractmethod
    def span(self, pass_: Pass) -> range:
        """Which tokens of a pass it wants the states of."""

    @abstractmethod
    def reader(self, lengths: Sequence[int], model: Reading) -> StateReader:
        """What takes the states of a batch.

        Args:
            lengths: tokens of each sequence that are handed over.
            model: of which the states are.
        """


@dataclass(frozen=True)
class Reading:
    """What a reader may know of the model.

    Args:
        count: hidden states there are: layers and one.
        device: where they are.
        head: the way from the last hidden state to logits; None where it cannot be run apart.
    """

    count: int
    device: torch.device
    head: LogitsHead | None


@dataclass
class Tap:
    """One readout's hold on a batch.

    Args:
        readout: whose.
        reader: takes the states.
        layers: those it wants.
        spans: place in the batch -> tokens it wants there.
        at: (tokens,) where these stand among all tokens that are read together; set when that is known.
    """

    readout: StateReadout
    reader: StateReader
    layers: frozenset[int]
    spans: Mapping[int, range]
    at: torch.Tensor | None = None
    broken: torch.Tensor | None = field(default=None, init=False)  # (tokens,) first layer with inf or NaN

    def place(self, where: Sequence[npt.NDArray[np.int64]], device: torch.device) -> None:
        """Find the tokens, given where each of a pass stands."""
        at = np.concatenate([where[i][span.start : span.stop] for i, span in self.spans.items()])
        self.at = to(at, device)

    def take(self, layer: int, states: torch.Tensor) -> None:
        """(tokens, dim) of all that is read together."""
        if layer not in self.layers:
            return
        assert self.at is not None, "place comes first"
        rows = states[self.at.to(states.device)].to(self.at.device)  # layers may lie on several devices
        if self.broken is None:
            self.broken = torch.full((len(rows),), ALL_GOOD, device=rows.device)
        odd = ~torch.isfinite(rows.sum(dim=1, dtype=torch.float32))  # one number a token: a sum keeps inf and NaN
        self.broken.masked_fill_(odd & (self.broken == ALL_GOOD), layer)
        self.reader.take(layer, rows)

    def results(self, dtype: str) -> Callable[[], dict[int, Any]]:
        """By place in the batch what the reader made of it, or why it could not; called, they are waited for."""
        made, spans = self.reader.results(), self.spans  # what waits keeps neither tap nor reader on the device
        broken = None if self.broken is None else fetched(self.broken)

        def wait() -> dict[int, Any]:
            found = dict(zip(spans, made(), strict=True))
            for i, layer in first_broken(broken(), spans) if broken is not None else ():
                found[i] = not_finite(layer, dtype)
            return found

        return wait


def first_broken(layers: npt.NDArray[np.int64], spans: Mapping[int, range]) -> Iterator[tuple[int, int]]:
    """Of each sequence with inf or NaN its place, and the first layer that has them.

    Args:
        layers: (tokens,) the first one of each token, or `ALL_GOOD`.
        spans: place in the batch -> tokens, as they follow one another.
    """
    start = 0
    for i, span in spans.items():
        first = int(layers[start : start + len(span)].min(initial=ALL_GOOD))
        start += len(span)
        if first < ALL_GOOD:
            yield i, first


def not_finite(layer: int, dtype: str) -> Problem:
    ways = {"fp16": "bf16 or fp32 may hold them", "bf16": "fp32 may hold them"}.get(dtype, "the weights may be damaged")
    return Problem(f"hidden states are not finite in {dtype}: from layer {layer} on; {ways}")


def make_taps(passes: Sequence[Pass], asked: Sequence[Sequence[Readout]], model: Reading) -> list[Tap]:
    """The taps of a batch: per pass the readouts asked of it."""
    taps = []
    for readout in dict.fromkeys(one for each in asked for one in each if isinstance(one, StateReadout)):
        spans = {i: readout.span(passes[i]) for i, each in enumerate(asked) if readout in each}
        reader = readout.reader([len(span) for span in spans.values()], model)
        taps.append(Tap(readout, reader, frozenset(readout.layers(model.count)), spans))
    return taps


Hand = Callable[[int, torch.Tensor], None]
