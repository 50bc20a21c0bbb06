"""The engine on several devices, with one worker process on each, which get batches as they become free.

Batches are cut here, from what the first worker found out about the model, and answers are stored by the caller: the
workers only compute. The workers are alike, so it does not matter which of them reads a batch.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from multiprocessing.connection import wait
from typing import Any

import torch

from tithe.engine.batches import Batch
from tithe.engine.devices import device_names
from tithe.engine.engine import Asked, Engine, PassResult, release
from tithe.engine.forward.path_choice import FORWARD_PATHS
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import load_model
from tithe.engine.model_source import ModelSource
from tithe.engine.readouts.base import Readout
from tithe.engine.workers.worker_process import BatchDone, BatchWork, LoadRequest, WorkerProcess, WorkerReady
from tithe.errors import ModelError
from tithe.records import Pass, Problem


class RemoteModel(LoadedModel):
    """A model that is loaded in other processes: its facts, without its weights."""

    def __init__(self, source: ModelSource, device: torch.device, loaded: WorkerReady) -> None:
        super().__init__(
            source, None, device, loaded.dtype, loaded.fingerprint, loaded.forward_path, loaded.implementation
        )
        self.fallbacks, self.single_above, self.fp32 = loaded.fallbacks, loaded.single_above, loaded.fp32
        self._vocabulary, self._parameters = loaded.vocabulary, loaded.parameters

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def parameters(self) -> int:
        return self._parameters


class MultiDeviceEngine(Engine):
    """An engine whose passes are read by one worker process on each device.

    The first worker loads the model and chooses the forward path; the others are started if there is more than one
    batch to read, use the same path, and take part as soon as they are ready.

    Args:
        source: the model.
        devices: of the same kind; see `choose_devices`.
        how: arguments of `load_model`, without the device.
        budget: tokens per batch; None takes what the first worker chooses.
        workers: passes that each worker reads at once; None takes one.
        compiled: whether each worker compiles parts of its model.

    Raises:
        ModelError: the model cannot be loaded on the first device.
    """

    def __init__(
        self,
        source: ModelSource,
        devices: Sequence[torch.device],
        how: Mapping[str, Any],
        *,
        budget: int | None = None,
        workers: int | None = None,
        compiled: bool = False,
    ) -> None:
        self._source, self._places, self._how, self._workers = source, tuple(devices), dict(how), workers
        self.budget, self.workers, self.halved, self._compiled = budget, workers, 0, compiled
        self._names = device_names(self._places)
        self._processes: list[WorkerProcess] = []
        self._readouts: list[Readout] = []
        self._numbers = count()  # batches are numbered over all readings, so that late results are recognised
        self._local: Engine | None = None
        # Ends the workers when this engine is collected, even if nobody called `close`.
        self._ending = weakref.finalize(self, end_all, self._processes)
        try:
            self._start(1)
            loaded = self._processes[0].receive()
        except BaseException:
            self.close()
            raise
        assert isinstance(loaded, WorkerReady)
        self._loaded = loaded
        self.model = RemoteModel(source, self._places[0], loaded)
        self.budget, self.workers, self.threads = loaded.budget, loaded.workers, loaded.threads
        # What the first worker chose is prescribed to the others: all must round alike.
        path = (loaded.forward_path, loaded.implementation)
        self._how |= {
            "forward_paths": (path if path in FORWARD_PATHS else (loaded.forward_path, None),),
            "known": loaded.fingerprint,
        }
        if loaded.fp32 is not None:
            self._how["fp32_route"] = loaded.fp32.name
        if "loss" in loaded.facts:
            self._how["loss"] = loaded.facts["loss"]["name"]

    @property
    def devices(self) -> list[str]:
        return [str(device) for device in self._places]

    @property
    def measured(self) -> bool:
        return self._loaded.measured

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the first worker measured and chose, for the run record."""
        return dict(self._loaded.facts)

    @property
    def words(self) -> list[str]:
        return list(self._loaded.words)

    @property
    def processes(self) -> Sequence[WorkerProcess]:
        """Return the running worker processes."""
        return self._processes

    def read(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        """Yield each batch with one result per pass of it, in order of completion.

        Raises:
            ModelError: a worker failed or ended; all others are ended too.
        """
        self.demand_vocabulary(passes, batches)
        if not all(readout.travels for each in asked for readout in each):  # some cannot be sent to a worker
            yield from self.in_this_process().read(passes, batches, asked)
            return
        self._drop_local()
        try:
            self._start(min(len(self._places), max(1, len(batches))))
            yield from self._hand_out(passes, batches, asked)
        except GeneratorExit:  # workers keep running; results of unfinished batches are ignored later
            raise
        except BaseException:
            self.close()
            raise

    def _hand_out(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        places = self._learn(asked)
        waiting = zip(self._numbers, batches, strict=False)
        out: dict[int, Batch] = {}
        left = True
        while left or out:
            # Each worker has one batch queued beyond those it works on, so that it never waits for the next one; the
            # worker with the fewest batches gets the next, so that all finish at about the same time.
            free = [one for one in self._processes if one.loaded and len(one.under_way) <= (self.workers or 1)]
            while left and free:
                process = min(free, key=lambda one: len(one.under_way))
                number, batch = next(waiting, (0, None))
                if batch is None:
                    left = False
                    break
                out[number] = batch
                process.teach(self._readouts)
                # Readouts are sent once, and by their place after that: a head is large.
                told = [tuple(places[id(readout)] for readout in asked[i]) for i in batch.index]
                process.give(BatchWork(number, [passes[i] for i in batch.index], batch.after, told))
                free = [one for one in free if len(one.under_way) <= (self.workers or 1)]
            if out or left:
                for done in self._finished():
                    if done.number in out:  # else it belongs to an earlier reading that was abandoned
                        yield out.pop(done.number), done.results

    def _finished(self) -> Iterator[BatchDone]:
        """Wait for messages from workers, and yield the finished batches among them."""
        by_channel = {one.channel: one for one in self._processes if one.under_way or not one.loaded}
        for channel in wait(list(by_channel)):
            process = by_channel[channel]  # type: ignore[index]
            message = process.receive()
            if isinstance(message, WorkerReady):
                self._demand_same(process, message)
            else:
                self.halved = sum(one.halved for one in self._processes)
                yield message

    def _demand_same(self, process: WorkerProcess, loaded: WorkerReady) -> None:
        """Raise if two workers differ in anything that affects numbers; the forward path is the same for all."""
        own = self.model
        for what, here, there in (
            ("fp32 kernels", own.fp32 and own.fp32.name, loaded.fp32 and loaded.fp32.name),
            ("longest sequence that shares a batch", own.single_above, loaded.single_above),
            ("parameters", own.parameters, loaded.parameters),
            ("attention over packs", attention_kernels(self._loaded), attention_kernels(loaded)),
            ("compiled parts", compiled_kinds(self._loaded), compiled_kinds(loaded)),
        ):
            if here != there:
                raise ModelError(
                    f"the processes on `{self._names[0]}` and `{process.name}` do not agree in their {what}: "
                    f"{here} and {there}",
                    hint="read on one of the two",
                )

    def _learn(self, asked: Asked) -> dict[int, int]:
        """Add new readouts to the list of all ever requested; return the place of each, by identity."""
        known = {id(readout): place for place, readout in enumerate(self._readouts)}
        for readout in (one for each in asked for one in each):
            if id(readout) not in known:
                known[id(readout)] = len(self._readouts)
                self._readouts.append(readout)
        return known

    def _start(self, wanted: int) -> None:
        """Start workers until `wanted` are running."""
        for place in range(len(self._processes), wanted):
            how = self._how | {"device": str(self._places[place])}
            load = LoadRequest(self._source, how, self.budget, self._workers, len(self._places), self._compiled)
            self._processes.append(WorkerProcess(self._names[place], load))

    def in_this_process(self) -> Engine:
        """Return an engine that holds the model in this process; the workers end, so that it is in memory once."""
        if self._local is None:
            self.close()
            model = load_model(self._source, **self._how, device=str(self._places[0]))
            self._local = Engine(model, self.budget, self._workers, compiled=self._compiled)
        return self._local

    def _drop_local(self) -> None:
        if self._local is not None:
            self._local = None
            release(self._places[0])
            gc.collect()

    def close(self) -> None:
        """End all workers; the next reading starts them again."""
        end_all(self._processes)


def attention_kernels(loaded: WorkerReady) -> list[str]:
    """List the attention kernels that a worker uses."""
    return [one["taken"] for one in loaded.facts.get("attention_by", ())]


def compiled_kinds(loaded: WorkerReady) -> list[str]:
    """List the kinds of parts that a worker compiled."""
    return list(loaded.facts.get("compiled", {}).get("parts", ()))


def end_all(processes: list[WorkerProcess]) -> None:
    """End all workers and empty the list."""
    while processes:
        processes.pop().close()
