"""Hidden states of responses for training heads: means per layer, or all states for a few examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.host import start_fetch
from tithe.engine.readouts.base import View
from tithe.records import Answer, Pass

if TYPE_CHECKING:
    import pyarrow as pa


class Collected(StateReadout):
    """A readout of responses' states that are returned and never stored.

    Args:
        wanted: numbers of the layers; None for all.
    """

    version = 1
    fields: ClassVar[Mapping[str, str | pa.DataType]] = {}

    def __init__(self, wanted: Sequence[int] | None = None) -> None:
        self.wanted = wanted

    def layers(self, count: int) -> Sequence[int]:
        return range(count) if self.wanted is None else self.wanted

    def span(self, pass_: Pass) -> range:
        return range(pass_.start, len(pass_.ids))

    @abstractmethod
    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader: ...

    def read(self, view: View) -> dict[str, Any]:
        raise AssertionError("collected states are never stored")

    def answer(self, row: Mapping[str, Any]) -> Answer:
        raise AssertionError("collected states are never stored")


class MeanStates(Collected):
    """The mean state of a response in each layer: (layers, dim) float32."""

    name = "means"

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        return MeanStatesReader(self.lengths(passes))


class MeanStatesReader:
    """A reader that averages each response's states, layer by layer."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # Sequence by sequence, so that the order of summation does not depend on the rest of the batch.
        parts = torch.split(rows, self.lengths)
        self.found.append(torch.stack([part.mean(0, dtype=torch.float32) for part in parts]))

    def results(self) -> PendingStates:
        values = start_fetch(torch.stack(self.found, dim=1))  # (sequences, layers, dim)
        return lambda: list(values())


class AllStates(Collected):
    """All states of a response, in float32 on the device: (layers, tokens, dim). For use one batch at a time."""

    name = "states"
    travels: ClassVar[bool] = False  # the states stay on their device

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        return AllStatesReader(self.lengths(passes))


class AllStatesReader:
    """A reader that keeps all states of a batch."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.found.append(rows.float())

    def results(self) -> PendingStates:
        split = (torch.split(rows, self.lengths) for rows in self.found)
        states = [torch.stack(parts) for parts in zip(*split, strict=True)]  # (layers, tokens, dim) each
        return lambda: states
