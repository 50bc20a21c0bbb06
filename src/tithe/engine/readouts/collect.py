"""Hidden states for those who learn from them: means per layer, or all of them for a few examples."""

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
    """States of responses that are handed out and never stored.

    Args:
        wanted: which layers; all of them where None.
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
    def reader(self, lengths: Sequence[int], model: ReaderContext) -> StateReader: ...

    def read(self, view: View) -> dict[str, Any]:
        raise AssertionError("collected states are never stored")

    def answer(self, row: Mapping[str, Any]) -> Answer:
        raise AssertionError("collected states are never stored")


class MeanStates(Collected):
    """Per response the mean state of each layer: (layers, dim) float32."""

    name = "means"

    def reader(self, lengths: Sequence[int], model: ReaderContext) -> StateReader:
        return MeanStatesReader(lengths)


class MeanStatesReader:
    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # Sequence by sequence: the order in which a mean is summed then depends on that sequence alone.
        parts = torch.split(rows, self.lengths)
        self.found.append(torch.stack([part.mean(0, dtype=torch.float32) for part in parts]))

    def results(self) -> PendingStates:
        values = start_fetch(torch.stack(self.found, dim=1))  # (sequences, layers, dim)
        return lambda: list(values())


class AllStates(Collected):
    """Per response all its states, in float32 on the device: (layers, tokens, dim). For a batch at a time."""

    name = "states"
    travels: ClassVar[bool] = False  # they stay where they are read

    def reader(self, lengths: Sequence[int], model: ReaderContext) -> StateReader:
        return AllStatesReader(lengths)


class AllStatesReader:
    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.found.append(rows.float())

    def results(self) -> PendingStates:
        split = (torch.split(rows, self.lengths) for rows in self.found)
        states = [torch.stack(parts) for parts in zip(*split, strict=True)]
        return lambda: states
