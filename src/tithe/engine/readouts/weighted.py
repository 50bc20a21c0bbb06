"""A direction for a whole sequence: the weighted mean of its last hidden states, normalised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.host import start_fetch
from tithe.engine.readouts.base import View
from tithe.records import Answer, Pass, Problem, Vector

NO_DIRECTION = Problem("its hidden states have no direction: their weighted mean is zero")


class Weighted(StateReadout):
    """The unit vector of sum_t w_t H_last[t] over all tokens of a pass, w_t = t / sum(t), t from 1, in float32.

    With causal attention a later token has seen more of the sequence, so it counts more.
    """

    name = "weighted"
    version = 1
    fields: ClassVar[Mapping[str, Any]] = {"values": "list<float32>"}

    def layers(self, count: int) -> Sequence[int]:
        return (count - 1,)

    def span(self, pass_: Pass) -> range:
        return range(len(pass_.ids))

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        return WeightedReader(self.lengths(passes))

    def read(self, view: View) -> dict[str, Any] | Problem:
        if isinstance(view.found, Problem):
            return view.found
        length = float(np.linalg.norm(view.found))
        return {"values": view.found / np.float32(length)} if length > 0 else NO_DIRECTION

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Vector(np.asarray(row["values"], dtype=np.float32))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        angle = mean + tokens
        return Vector(np.array([math.cos(angle), math.sin(angle), 0.0], dtype=np.float32))


class WeightedReader:
    """A reader that computes each sequence's weighted mean."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # Sequence by sequence: the order of summation does not depend on the batch, and no float32 copy of it is made.
        self.found = [weighted_mean(part) for part in torch.split(rows, self.lengths)]

    def results(self) -> PendingStates:
        values = start_fetch(torch.stack(self.found))
        return lambda: list(values())


def weighted_mean(states: torch.Tensor) -> torch.Tensor:
    """Return the mean of states weighted by their position: (tokens, dim) in any dtype -> (dim,) float32."""
    places = torch.arange(1, len(states) + 1, device=states.device, dtype=torch.float32)
    return (places / places.sum()) @ states.float()
