"""Cells spread over processes: one per GPU, or a few that share the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.engine.workers.child_process import child_variables
from tithe.errors import SettingsError, TitheError
from tithe.lab.experiment.cells import write_broken_off

LEAST = 2  # cells done: the first is the untrained model's, and starts the process; it says nothing of the others
Done = Callable[[str, Mapping[str, Any]], None]
PATIENCE = 20.0  # seconds in which a worker writes how far it came
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class CellError(TitheError):
    """A cell that could not be done."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Args:
        name: for its log.
        variables: of its environment.
    """

    name: str
    variables: Mapping[str, str]


def places(parallel: int | None, device: str) -> list[Place]:
    """One per GPU that may be used; on a processor, so many as asked for, sharing its threads.

    Raises:
        SettingsError: more trainings at once than there are GPUs, or cores; or several devices are named.
    """
    import torch

    from tithe.engine.devices import choose_device

    choose_device(device)  # it refuses what is not there, and several: a training has one
    gpus = visible_gpus() if device in ("auto", "cuda") and torch.cuda.is_available() else []
    if gpus:
        if parallel is not None and parallel > len(gpus):
            raise SettingsError(f"`parallel` is {parallel}, and there are {len(gpus)} GPUs", hint="one training each")
        return [Place(f"gpu{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[: parallel or len(gpus)]]
    cores, count = os.cpu_count() or 1, parallel or 1
    if count > cores:
        raise SettingsError(f"`parallel` is {count}, and there are {cores} cores", hint="one training a core at most")
    threads = str(max(1, cores // count))
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if count > 1 else {}
    return [Place(f"worker{i}", own) for i in range(count)]


def visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


@dataclass
class Worker:
    """A process that waits for cells; started with its first one, and again after it has died.

    Args:
        place: where it runs.
        logs: folder for what it says.
    """

    place: Place
    logs: Path
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def do(self, own: Path) -> dict[str, Any]:
        """The record of a cell.

        Raises:
            CellError: what stopped it.
        """
        process = self.running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(str(own)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:  # it died before it was asked
            line = ""
        if not line:
            process.communicate()
            code, self.process = process.returncode, None
            signal = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise CellError(
                f"the process that trained it ended with {signal}",
                hint=f"out of memory, if it was killed; its log is `{self.log}`",
            )
        said = json.loads(line)
        if "done" not in said:
            raise CellError(said["error"], hint=said["hint"])
        return dict(said["done"])

    def running(self) -> subprocess.Popen[str]:
        if self.process is None:
            with self.log.open("a", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tithe.lab.experiment.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=os.environ | QUIET | dict(self.place.variables) | dict(child_variables()),
                )
        return self.process

    @property
    def log(self) -> Path:
        return self.logs / f"{self.place.name}.log"

    def stop(self) -> None:
        """It ends when nothing more can be asked of it; in the middle of a cell it is told to."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # in a call that no signal breaks into
            self.process.kill()
            self.process.communicate()
        self.process = None


def do_all(folders: Sequence[tuple[str, Path]], where: Sequence[Place], logs: Path, done: Done) -> None:
    """Do cells, as many at once as there are places; what fails does not stop what is under way.

    Args:
        folders: name and folder of each cell, in order.
        where: places of workers.
        logs: folder of their logs.
        done: called with each cell's name and record, in the order in which they end.

    Raises:
        CellError: of the first cell that failed, after those under way have ended; no further ones are begun.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = deque(folders)
    workers = [Worker(place, logs) for place in where]
    failed: list[tuple[str, CellError]] = []
    pool = ThreadPoolExecutor(len(workers))
    busy: dict[Future[dict[str, Any]], tuple[str, Path, Worker]] = {}
    try:
        free = list(workers)
        while busy or (waiting and not failed):
            while free and waiting and not failed:
                (name, own), worker = waiting.popleft(), free.pop()
                busy[pool.submit(worker.do, own)] = (name, own, worker)
            ended, _ = wait(busy, timeout=1, return_when=FIRST_COMPLETED)
            for future in ended:
                name, own, worker = busy[future]
                free.append(worker)
                try:
                    done(name, future.result())
                except CellError as error:
                    failed.append((name, error))
                    write_broken_off(own, error)
                del busy[future]
    except BaseException as error:
        stop(workers, pool)
        for _, own, _ in busy.values():
            write_broken_off(own, error)
        raise
    finally:
        stop(workers, pool)
    if failed:
        name, first = failed[0]
        again = "the same command goes on from there"
        raise CellError(f"{name}: {first}", hint=f"{first.hint}; {again}" if first.hint else again)


def stop(workers: Sequence[Worker], pool: ThreadPoolExecutor) -> None:
    for worker in workers:
        worker.stop()
    pool.shutdown(wait=True)


@dataclass
class Clock:
    """How long the rest will take, by what the cells done so far took.

    Args:
        weights: name -> how much work a cell is.
    """

    weights: Mapping[str, float]
    began: float = field(default_factory=time.monotonic)
    finished: float = 0.0
    count: int = 0

    def done(self, name: str) -> str:
        """A part of a sentence."""
        self.finished += self.weights[name]
        self.count += 1
        left = sum(self.weights.values()) - self.finished
        if self.count == len(self.weights) or self.count < LEAST:
            return f"{self.count} of {len(self.weights)} done"
        seconds = (time.monotonic() - self.began) / self.finished * left
        return f"{self.count} of {len(self.weights)} done, about {duration(seconds)} left"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
