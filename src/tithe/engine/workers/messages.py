"""What an engine on several devices and its processes say to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tithe.engine.batches.batching import After
from tithe.engine.readouts.base import Readout
from tithe.engine.sources import ModelSource
from tithe.records import Pass, Problem

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import Read
    from tithe.engine.measure.fp32_route import Fp32Route


@dataclass(frozen=True)
class Load:
    """To a process, first of all.

    Args:
        source: the model.
        how: arguments of `load_model`.
        budget: tokens a batch holds, or None for the device's default.
        workers: passes under way at once in this process.
        processes: that share the cores.
        compiled: whether parts of the model are compiled.
    """

    source: ModelSource
    how: Mapping[str, Any]
    budget: int | None
    workers: int | None
    processes: int
    compiled: bool = False


@dataclass(frozen=True)
class Loaded:
    """Back from it: what its model is, and what it found out (`Engine.measured`, `facts` and `words`)."""

    dtype: torch.dtype
    fingerprint: str
    road: str
    implementation: str | None
    fallbacks: list[str]
    alone_above: int | None
    fp32: Fp32Route | None
    vocabulary: int
    parameters: int
    budget: int
    workers: int
    threads: int | None
    measured: bool
    facts: Mapping[str, Any]
    words: Sequence[str]


@dataclass(frozen=True)
class Learn:
    """To a process: a readout that it will be asked for by its place among all that it was told of."""

    readout: Readout


@dataclass(frozen=True)
class Work:
    """To a process: one batch.

    Args:
        number: of the batch.
        passes: of the batch, in order.
        after: per pass what it continues.
        asked: per pass the places of the readouts.
    """

    number: int
    passes: Sequence[Pass]
    after: tuple[After | None, ...]
    asked: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Done:
    """Back from it: one result per pass, and how often memory ran out there so far."""

    number: int
    results: list[Read | Problem]
    halved: int


@dataclass(frozen=True)
class Failed:
    """Back from it: what stopped it.

    Args:
        message: one sentence.
        hint: the way out.
        expected: whether it was raised on purpose.
    """

    message: str
    hint: str | None
    expected: bool
