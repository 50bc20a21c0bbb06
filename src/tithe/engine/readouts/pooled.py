"""One vector per sequence, for the encoder `self`: the mean of its last hidden states, or the last token's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.batches import Batch
from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.host import start_fetch
from tithe.engine.readouts.base import RunFacts, View
from tithe.errors import ModelError, SettingsError, did_you_mean
from tithe.records import Answer, IntArray, Pass, Problem, Vector

if TYPE_CHECKING:
    from tithe.engine.engine import Engine

NUMERICS = 1  # raise it when a change moves vectors by more than rounding, so that stored vectors are not reused
Pooling: TypeAlias = Literal["mean", "last"]
Vectors: TypeAlias = npt.NDArray[np.float32]
Found: TypeAlias = tuple[tuple[int, ...], Vectors | None]


class Pooled(StateReadout):
    """The last hidden states of a pass, after the final norm, as one vector: (dim,) float32.

    Args:
        pooling: the mean over the tokens, or the last token's state.
    """

    version = NUMERICS
    fields: ClassVar[Mapping[str, Any]] = {"values": "list<float32>"}

    def __init__(self, pooling: Pooling = "mean") -> None:
        self.pooling, self.name = pooling, f"pooled-{pooling}"

    def layers(self, count: int) -> Sequence[int]:
        return (count - 1,)

    def span(self, pass_: Pass) -> range:
        return range(len(pass_.ids)) if self.pooling == "mean" else range(len(pass_.ids) - 1, len(pass_.ids))

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        return PooledReader(self.lengths(passes))

    def read(self, view: View) -> dict[str, Any] | Problem:
        return view.found if isinstance(view.found, Problem) else {"values": view.found}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Vector(np.asarray(row["values"], dtype=np.float32))

    @classmethod
    def make(cls, argument: str, run: RunFacts) -> Self:
        """Make the readout of `pooled:mean` or `pooled:last`."""
        if argument not in get_args(Pooling):
            raise SettingsError(f"no pooling `{argument}`", hint=did_you_mean(argument, get_args(Pooling)))
        return cls("last" if argument == "last" else "mean")

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        angle = mean + tokens
        return Vector(np.array([3 * math.cos(angle), 3 * math.sin(angle), 1.0], dtype=np.float32))


class PooledReader:
    """A reader that pools each sequence's states."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # Sequence by sequence, so that the order of summation does not depend on the rest of the batch.
        self.found = [part.mean(0, dtype=torch.float32) for part in torch.split(rows, self.lengths)]  # (dim,) each

    def results(self) -> PendingStates:
        values = start_fetch(torch.stack(self.found))
        return lambda: list(values())


def pooled_vectors(
    engine: Engine, rows: Sequence[IntArray], have: Sequence[bool], *, pooling: Pooling = "mean"
) -> Iterator[Found]:
    """Embed sequences in batches.

    Args:
        engine: a loaded model with its token budget and workers.
        rows: token ids of each sequence, at least one.
        have: which sequences to skip. Batches are cut from all, so that skipping some does not change the others.
        pooling: the mean over a sequence's tokens, or its last token's state.

    Yields:
        The indices of some sequences and their vectors, (sequences, dim) float32, batch by batch in order of
        completion; None instead of vectors for a single sequence that does not fit into memory.

    Raises:
        ModelError: states are not finite, or the model does not return them.
    """
    from tithe.engine.engine import OUT_OF_MEMORY

    passes, readout = [Pass(ids.astype(np.int32, copy=False), 0) for ids in rows], Pooled(pooling)
    kept = (tuple(i for i in batch.index if not have[i]) for batch in engine.batches(passes))
    # No shared prefixes: each sequence is read whole, so that a vector's last bits depend only on its own batch.
    batches = [Batch(index) for index in kept if index]
    for batch, results in engine.read(passes, batches, [(readout,)] * len(passes)) if batches else ():
        good: list[tuple[int, Any]] = []
        for i, one in zip(batch.index, results, strict=True):
            found = one if isinstance(one, Problem) else one.found[readout.name]
            if isinstance(found, Problem) and found == OUT_OF_MEMORY:
                yield (i,), None
            elif isinstance(found, Problem):
                raise ModelError(f"a text of {len(rows[i])} tokens cannot be embedded: {found.reason}")
            else:
                good.append((i, found))
        if good:
            yield tuple(i for i, _ in good), np.stack([vector for _, vector in good])
