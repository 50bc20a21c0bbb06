"""What is wanted of passes that are read together: likelihoods, hidden states, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.forward.layers import Layers
from tithe.engine.forward.states import Tap
from tithe.records import Pass

TokenNlls = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.integer[Any]]  # as passes hold them: cast once a batch, not once a pass
NO_NLL: TokenNlls = np.empty(0, dtype=np.float32)
Coming: TypeAlias = Callable[[], list[TokenNlls]]  # what was asked of a device; called, it is waited for


@dataclass(frozen=True)
class Wanted:
    """What is wanted of passes that are read together.

    Args:
        nll: per pass whether its likelihoods are.
        taps: what takes hidden states.
        layers: how they come; None where there are no taps.
    """

    nll: Sequence[bool]
    taps: Sequence[Tap] = ()
    layers: Layers | None = None

    @classmethod
    def likelihoods(cls, passes: Sequence[Pass]) -> Wanted:
        return cls([True] * len(passes))

    def length(self, i: int, pass_: Pass) -> int:
        """Tokens that the model reads of a pass: its last one predicts nothing, but may have a state of worth."""
        tokens = len(pass_.ids)
        whole = any(tap.spans[i].stop == tokens for tap in self.taps if i in tap.spans)
        return tokens if whole or tokens == 1 else tokens - 1  # something has to be read

    def handing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.layers is None else self.layers.handing(self.hand)

    def hand(self, layer: int, states: torch.Tensor) -> None:
        """One layer's states, of rows or a row of tokens, to all who want them."""
        for tap in self.taps:
            tap.take(layer, states.flatten(0, 1))

    def place(self, where: Sequence[Ids], device: torch.device) -> None:
        for tap in self.taps:
            tap.place(where, device)

    def scored(self, passes: Sequence[Pass], where: Sequence[Ids]) -> tuple[list[Ids], list[TokenIds]]:
        """Of each pass whose likelihoods are wanted: where the states stand that predict its response, and its ids."""
        places, targets = [], list[TokenIds]()
        for i, pass_ in enumerate(passes):
            first = max(pass_.start, 1)
            places.append(where[i][first - 1 : len(pass_.ids) - 1] if self.nll[i] else where[i][:0])
            targets.append(pass_.ids[first:] if self.nll[i] else pass_.ids[:0])
        return places, targets
