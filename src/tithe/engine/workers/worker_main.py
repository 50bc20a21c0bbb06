"""One process of an engine on several devices: it loads the model on its own and answers batch after batch.

`python -m tithe.engine.workers.worker_main DESCRIPTOR` speaks to the process that started it through a
socket pair, of which the number is given. It keeps nothing on disk, and ends when nobody is left who could ask.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import torch

from tithe.engine.batches import Batch
from tithe.engine.engine import Engine, PendingResults
from tithe.engine.forward.states import StateReadout
from tithe.engine.host import cpu_cores
from tithe.engine.loading import load_model
from tithe.engine.measure.memory import MOST, SHARED
from tithe.engine.model_files import first_line
from tithe.engine.readouts.base import Readout
from tithe.engine.workers.child_process import end_with_parent
from tithe.engine.workers.worker import BatchDone, BatchWork, LearnReadout, LoadRequest, WorkerFailed, WorkerReady
from tithe.errors import TitheError, demand


class Worker:
    """Takes messages, in order, until there is nobody to send one."""

    def __init__(self, channel: Connection) -> None:
        self.channel = channel
        self.coming: SimpleQueue[Any] = SimpleQueue()
        self.one_at_a_time = Lock()  # several threads answer
        self.readouts: list[Readout] = []
        self.waiting = ThreadPoolExecutor(1)  # waits for what a GPU was given, while it is given the next

    def run(self) -> None:
        Thread(target=self.listen, daemon=True).start()
        try:
            load = self.coming.get()
            self.engine = self.load(load)
            with ThreadPoolExecutor(self.engine.workers, initializer=self.begin) as pool:
                while True:
                    self.take(self.coming.get(), pool)
        except BaseException as error:
            self.send(failure(error))
            raise

    def listen(self) -> None:
        """Read all the time, so that no writer waits; exit when nothing more will come."""
        try:
            while True:
                self.coming.put(self.channel.recv())
        except (EOFError, OSError):
            os._exit(0)

    def send(self, message: Any) -> None:
        with self.one_at_a_time:
            try:
                self.channel.send(message)
            except OSError:  # nobody is there any more
                os._exit(0)

    def load(self, load: LoadRequest) -> Engine:
        model = load_model(load.source, **load.how)
        on_cpu = model.device.type == "cpu"
        workers, cores = (load.workers or 1) if on_cpu else load.workers, max(1, cpu_cores() // load.processes)
        most = MOST if load.processes == 1 else SHARED
        engine = Engine(model, load.budget, workers, compiled=load.compiled, cores=cores, most=most)
        assert engine.budget is not None and engine.workers is not None
        self.send(
            WorkerReady(
                model.dtype,
                model.fingerprint,
                model.forward_path,
                model.implementation,
                model.fallbacks,
                model.single_above,
                model.fp32,
                model.vocabulary,
                model.parameters,
                engine.budget,
                engine.workers,
                engine.threads,
                engine.measured,
                engine.facts,
                engine.words,
            )
        )
        return engine

    def begin(self) -> None:
        """Prepare a thread that answers."""
        device = self.engine.model.device
        self.engine.set_threads()
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def take(self, message: LearnReadout | BatchWork, pool: ThreadPoolExecutor) -> None:
        if isinstance(message, BatchWork):
            pool.submit(self.answer, message, list(self.readouts))
            return
        self.readouts.append(message.readout)
        if isinstance(message.readout, StateReadout):
            demand(self.engine.model.layers)  # found here, before threads read

    def answer(self, work: BatchWork, readouts: list[Readout]) -> None:
        try:
            batch = Batch(tuple(range(len(work.passes))), work.after)
            asked = [[readouts[i] for i in each] for each in work.asked]
            results = self.engine.start_batch(work.passes, batch, asked)
        except Exception as error:
            self.waiting.submit(self.send, failure(error))  # after what was begun before
        else:
            self.waiting.submit(self.hand_over, work.number, results)

    def hand_over(self, number: int, results: PendingResults) -> None:
        try:
            done = BatchDone(number, results(), self.engine.halved)
        except Exception as error:
            self.send(failure(error))
        else:
            self.send(done)


def failure(error: BaseException) -> WorkerFailed:
    if isinstance(error, TitheError):
        return WorkerFailed(str(error), error.hint, expected=True)
    text = first_line(error) if isinstance(error, Exception) else ""
    return WorkerFailed(f"{type(error).__name__}: {text}", None, expected=False)


if __name__ == "__main__":
    end_with_parent()
    Worker(Connection(int(sys.argv[1]))).run()
