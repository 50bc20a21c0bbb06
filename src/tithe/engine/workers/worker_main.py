"""The worker process of an engine on several devices: it loads the model and reads batch after batch.

`python -m tithe.engine.workers.worker_main DESCRIPTOR` talks to the process that started it through a socket pair,
whose file descriptor is the argument. It stores nothing on disk, and ends when its parent is gone.
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
from tithe.engine.workers.worker_process import (
    BatchDone,
    BatchWork,
    LearnReadout,
    LoadRequest,
    WorkerFailed,
    WorkerReady,
)
from tithe.errors import TitheError, demand


class WorkerLoop:
    """The loop that handles the parent's messages in order, until the parent is gone."""

    def __init__(self, channel: Connection) -> None:
        self.channel = channel
        self.coming: SimpleQueue[Any] = SimpleQueue()
        self.send_lock = Lock()  # several threads send replies
        self.readouts: list[Readout] = []
        self.waiting = ThreadPoolExecutor(1)  # waits for a batch on the GPU while the next one is queued there

    def run(self) -> None:
        """Load the model and read batches; report any error to the parent."""
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
        """Receive all the time, so that the parent never blocks when sending; exit when the parent is gone."""
        try:
            while True:
                self.coming.put(self.channel.recv())
        except (EOFError, OSError):
            os._exit(0)

    def send(self, message: Any) -> None:
        """Send a message to the parent; exit if it is gone."""
        with self.send_lock:
            try:
                self.channel.send(message)
            except OSError:
                os._exit(0)

    def load(self, load: LoadRequest) -> Engine:
        """Load the model, report its facts, and return its engine."""
        model = load_model(load.source, **load.how)
        on_cpu = model.device.type == "cpu"
        # On a CPU the processes share its cores already, so each reads one pass at a time unless told otherwise.
        workers, cores = (load.workers or 1) if on_cpu else load.workers, max(1, cpu_cores() // load.processes)
        # With several workers batches must be small enough for each to get some.
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
        """Prepare a thread that reads batches."""
        device = self.engine.model.device
        self.engine.set_threads()
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def take(self, message: LearnReadout | BatchWork, pool: ThreadPoolExecutor) -> None:
        """Handle one message: store a readout, or queue a batch."""
        if isinstance(message, BatchWork):
            pool.submit(self.answer, message, list(self.readouts))
            return
        self.readouts.append(message.readout)
        if isinstance(message.readout, StateReadout):
            demand(self.engine.model.layers)  # computed here: threads must not compute it at the same time

    def answer(self, work: BatchWork, readouts: list[Readout]) -> None:
        """Start a batch, and leave waiting for it to another thread."""
        try:
            batch = Batch(tuple(range(len(work.passes))), work.after)
            asked = [[readouts[i] for i in each] for each in work.asked]
            results = self.engine.start_batch(work.passes, batch, asked)
        except Exception as error:
            self.waiting.submit(self.send, failure(error))  # after the results of batches started before
        else:
            self.waiting.submit(self.hand_over, work.number, results)

    def hand_over(self, number: int, results: PendingResults) -> None:
        """Wait for a batch and send its results."""
        try:
            done = BatchDone(number, results(), self.engine.halved)
        except Exception as error:
            self.send(failure(error))
        else:
            self.send(done)


def failure(error: BaseException) -> WorkerFailed:
    """Turn an error into a message to the parent."""
    if isinstance(error, TitheError):
        return WorkerFailed(str(error), error.hint, expected=True)
    text = first_line(error) if isinstance(error, Exception) else ""
    return WorkerFailed(f"{type(error).__name__}: {text}", None, expected=False)


if __name__ == "__main__":
    end_with_parent()
    WorkerLoop(Connection(int(sys.argv[1]))).run()
