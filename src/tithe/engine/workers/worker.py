"""A process that reads on a device of its own, as its parent sees it, and what the two say to each other."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tithe.engine.batches import SharedPrefix
from tithe.engine.model_source import ModelSource
from tithe.engine.readouts.base import Readout
from tithe.engine.workers.child_process import ChildProcess
from tithe.errors import ModelError
from tithe.records import Pass, Problem

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import PassResult
    from tithe.engine.measure.cpu_kernels import Fp32Route

KEPT = "what was answered is kept: the same command goes on from there"


class WorkerProcess(ChildProcess):
    """One process, from its start on.

    Args:
        name: of its device, for messages.
        load: what it reads with.
    """

    def __init__(self, name: str, load: LoadRequest) -> None:
        self.name = name
        self.loaded: WorkerReady | None = None
        self.under_way: set[int] = set()  # numbers of batches
        self.halved = 0
        self._learnt = 0
        super().__init__("tithe.engine.workers.worker_main")
        self.send(load)

    def send(self, message: Any) -> None:
        try:
            self.channel.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while self.channel.poll():  # it may have said why
                self.receive()
            raise self.last_words() from None

    def receive(self) -> BatchDone | WorkerReady:
        """Wait for its next message.

        Raises:
            ModelError: it could not do what it was asked, or has ended.
        """
        try:
            message = self.channel.recv()
        except (EOFError, ConnectionResetError):
            raise self.last_words() from None
        if isinstance(message, WorkerFailed):
            if message.expected:
                raise ModelError(message.message, hint=message.hint)
            raise ModelError(f"the process on `{self.name}` failed: {message.message}", hint=KEPT)
        if isinstance(message, WorkerReady):
            self.loaded = message
        else:
            self.under_way.remove(message.number)
            self.halved = message.halved
        return message  # type: ignore[no-any-return]

    def teach(self, readouts: list[Readout]) -> None:
        """Tell it of the readouts that it does not know yet."""
        for readout in readouts[self._learnt :]:
            self.send(LearnReadout(readout))
        self._learnt = len(readouts)

    def give(self, work: BatchWork) -> None:
        self.under_way.add(work.number)
        self.send(work)

    def last_words(self) -> ModelError:
        """Make the error of a process that has ended unasked."""
        ended = self.ended()
        if ended is None:
            return ModelError(f"the process on `{self.name}` says nothing any more, and has not ended", hint=KEPT)
        code, said = ended
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        memory = "a system kills what takes more memory than there is; " if code == -signal.SIGKILL else ""
        return ModelError(f"the process on `{self.name}` ended with {how}{said}", hint=memory + KEPT)


@dataclass(frozen=True)
class LoadRequest:
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
class WorkerReady:
    """Back from it: what its model is, and what it found out (`Engine.measured`, `facts` and `words`)."""

    dtype: torch.dtype
    fingerprint: str
    forward_path: str
    implementation: str | None
    fallbacks: list[str]
    single_above: int | None
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
class LearnReadout:
    """To a process: a readout that it will be asked for by its place among all that it was told of."""

    readout: Readout


@dataclass(frozen=True)
class BatchWork:
    """To a process: one batch.

    Args:
        number: of the batch.
        passes: of the batch, in order.
        after: per pass what it continues.
        asked: per pass the places of the readouts.
    """

    number: int
    passes: Sequence[Pass]
    after: tuple[SharedPrefix | None, ...]
    asked: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class BatchDone:
    """Back from it: one result per pass, and how often memory ran out there so far."""

    number: int
    results: list[PassResult | Problem]
    halved: int


@dataclass(frozen=True)
class WorkerFailed:
    """Back from it: what stopped it.

    Args:
        message: one sentence.
        hint: the way out.
        expected: whether it was raised on purpose.
    """

    message: str
    hint: str | None
    expected: bool
