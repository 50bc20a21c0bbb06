"""A worker process as its parent sees it, and the messages between the two."""

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

KEPT = "finished answers are kept: run the same command again to continue"


class WorkerProcess(ChildProcess):
    """A worker process that loads a model on one device and reads batches.

    Args:
        name: of its device, for messages.
        load: the model to load, sent first.
    """

    def __init__(self, name: str, load: LoadRequest) -> None:
        self.name = name
        self.loaded: WorkerReady | None = None
        self.under_way: set[int] = set()  # numbers of batches
        self.halved = 0
        self._learnt = 0  # readouts sent so far
        super().__init__("tithe.engine.workers.worker_main")
        self.send(load)

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            ModelError: the worker has ended; says why, if it sent a reason.
        """
        try:
            self.channel.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while self.channel.poll():  # its last message may be the reason, which `receive` raises
                self.receive()
            raise self.last_words() from None

    def receive(self) -> BatchDone | WorkerReady:
        """Wait for the worker's next message.

        Raises:
            ModelError: the worker failed or has ended.
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
        """Send the readouts that the worker does not have yet."""
        for readout in readouts[self._learnt :]:
            self.send(LearnReadout(readout))
        self._learnt = len(readouts)

    def give(self, work: BatchWork) -> None:
        """Send a batch to read."""
        self.under_way.add(work.number)
        self.send(work)

    def last_words(self) -> ModelError:
        """Return the error for a worker that ended unexpectedly."""
        ended = self.ended()
        if ended is None:
            return ModelError(f"the process on `{self.name}` no longer answers, but has not ended", hint=KEPT)
        code, said = ended
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        memory = "the system may have killed it for lack of memory; " if code == -signal.SIGKILL else ""
        return ModelError(f"the process on `{self.name}` ended with {how}{said}", hint=memory + KEPT)


@dataclass(frozen=True)
class LoadRequest:
    """The first message to a worker: the model to load.

    Args:
        source: the model.
        how: arguments of `load_model`.
        budget: tokens per batch; None for the device's default.
        workers: passes that the worker reads at once.
        processes: number of workers, which share the CPU's cores.
        compiled: whether to compile parts of the model.
    """

    source: ModelSource
    how: Mapping[str, Any]
    budget: int | None
    workers: int | None
    processes: int
    compiled: bool = False


@dataclass(frozen=True)
class WorkerReady:
    """A worker's reply when its model is loaded: facts about the model, and `Engine.measured`, `facts` and `words`."""

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
    """A message to a worker: a readout, to which batches refer by its place among all that were sent."""

    readout: Readout


@dataclass(frozen=True)
class BatchWork:
    """A message to a worker: one batch to read.

    Args:
        number: of the batch.
        passes: of the batch, in order.
        after: for each pass, the prefix it shares with an earlier one.
        asked: for each pass, the places of its readouts.
    """

    number: int
    passes: Sequence[Pass]
    after: tuple[SharedPrefix | None, ...]
    asked: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class BatchDone:
    """A worker's reply to a batch: one result per pass, and how often it has halved a batch so far."""

    number: int
    results: list[PassResult | Problem]
    halved: int


@dataclass(frozen=True)
class WorkerFailed:
    """A worker's reply if it failed.

    Args:
        message: one sentence.
        hint: what the user can do.
        expected: whether the error is one of ours, with a message for the user.
    """

    message: str
    hint: str | None
    expected: bool
