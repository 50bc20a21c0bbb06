"""The engine on several devices: one process on each, which are handed batches as they ask for them.

Batches are cut here, from what the first process found out about the model, and answers are stored by whoever reads
from here: the processes compute and keep nothing. Which of them answers a batch changes nothing, as they are alike.
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
from tithe.engine.workers.worker import BatchDone, BatchWork, LoadRequest, WorkerProcess, WorkerReady
from tithe.errors import ModelError
from tithe.records import Pass, Problem


class RemoteModel(LoadedModel):
    """What there is to know of a model that other processes have loaded."""

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
    """An engine whose passes are read by one process on each device.

    The first process loads the model and finds the road; the others are started when there is more than one batch to
    read, on the same road, and take part as soon as they are ready.

    Args:
        source: the model.
        devices: alike; see `choose_devices`.
        how: arguments of `load_model`, without the device.
        budget: tokens a batch holds; None takes what the first process chooses.
        workers: passes under way at once in each process; None takes one.
        compiled: whether each process compiles parts of its model.

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
        self._numbers = count()
        self._local: Engine | None = None
        self._ending = weakref.finalize(self, end, self._processes)
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
        road = (loaded.forward_path, loaded.implementation)
        self._how |= {
            "forward_paths": (road if road in FORWARD_PATHS else (loaded.forward_path, None),),
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
        """Return what the first process found out."""
        return dict(self._loaded.facts)

    @property
    def words(self) -> list[str]:
        return list(self._loaded.words)

    @property
    def processes(self) -> Sequence[WorkerProcess]:
        """Return the processes that run."""
        return self._processes

    def read(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        """Yield each batch with one result per pass of it, in order of completion.

        Raises:
            ModelError: a process failed or ended; all others are ended, too.
        """
        self.demand_vocabulary(passes, batches)
        if not all(readout.travels for each in asked for readout in each):
            yield from self.in_this_process().read(passes, batches, asked)
            return
        self._drop_local()
        try:
            self._start(min(len(self._places), max(1, len(batches))))
            yield from self._hand_out(passes, batches, asked)
        except GeneratorExit:  # what is under way is passed over later
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
            # One ahead of what it works on, and first those that have least: nobody waits, and none is left behind.
            free = [one for one in self._processes if one.loaded and len(one.under_way) <= (self.workers or 1)]
            while left and free:
                process = min(free, key=lambda one: len(one.under_way))
                number, batch = next(waiting, (0, None))
                if batch is None:
                    left = False
                    break
                out[number] = batch
                process.teach(self._readouts)
                told = [tuple(places[id(readout)] for readout in asked[i]) for i in batch.index]
                process.give(BatchWork(number, [passes[i] for i in batch.index], batch.after, told))
                free = [one for one in free if len(one.under_way) <= (self.workers or 1)]
            if out or left:
                for done in self._heard():
                    if done.number in out:  # else of a reading that nobody waited for
                        yield out.pop(done.number), done.results

    def _heard(self) -> Iterator[BatchDone]:
        """Wait until processes say something."""
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
        """Raise where processes differ in anything else that decides about numbers; the forward path is given."""
        own = self.model
        for what, here, there in (
            ("fp32 kernels", own.fp32 and own.fp32.name, loaded.fp32 and loaded.fp32.name),
            ("longest sequence that shares a batch", own.single_above, loaded.single_above),
            ("parameters", own.parameters, loaded.parameters),
            ("attention over packs", attention_of(self._loaded), attention_of(loaded)),
            ("compiled parts", parts_of(self._loaded), parts_of(loaded)),
        ):
            if here != there:
                raise ModelError(
                    f"the processes on `{self._names[0]}` and `{process.name}` do not agree in their {what}: "
                    f"{here} and {there}",
                    hint="read on one of the two",
                )

    def _learn(self, asked: Asked) -> dict[int, int]:
        """Map the identity of each readout that is asked for to its place among all that ever were."""
        known = {id(readout): place for place, readout in enumerate(self._readouts)}
        for readout in (one for each in asked for one in each):
            if id(readout) not in known:
                known[id(readout)] = len(self._readouts)
                self._readouts.append(readout)
        return known

    def _start(self, wanted: int) -> None:
        """Have so many processes running."""
        for place in range(len(self._processes), wanted):
            how = self._how | {"device": str(self._places[place])}
            load = LoadRequest(self._source, how, self.budget, self._workers, len(self._places), self._compiled)
            self._processes.append(WorkerProcess(self._names[place], load))

    def in_this_process(self) -> Engine:
        """Return an engine in this process, for what reads the model itself; the other processes end for it."""
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
        """End all processes; the next reading starts them again."""
        end(self._processes)


def attention_of(loaded: WorkerReady) -> list[str]:
    """List the ways of attention that are taken."""
    return [one["taken"] for one in loaded.facts.get("attention_by", ())]


def parts_of(loaded: WorkerReady) -> list[str]:
    """List the kinds of parts that are compiled."""
    return list(loaded.facts.get("compiled", {}).get("parts", ()))


def end(processes: list[WorkerProcess]) -> None:
    while processes:
        processes.pop().close()
