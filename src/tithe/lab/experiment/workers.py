"""Train and evaluate cells in worker processes: one per GPU, or a few that share the CPU.

A process of its own frees all memory of a training, and lets several GPUs work at once. `python -m
tithe.lab.experiment.workers` is such a process: it reads folders of cells from stdin and ends with it, or in the middle
of a cell if its parent has died. Messages go to stderr; stdout has one JSON object per line: `{"done": ...}` or
`{"error": ..., "hint": ...}`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tithe.engine.workers.child_process import child_variables, end_with_parent
from tithe.errors import SettingsError, TitheError
from tithe.lab.evaluate.evaluation import evaluate
from tithe.lab.evaluate.measured import as_records
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.cells import (
    TRACKING,
    answers_file,
    read_spec,
    spec_digest,
    with_tuples,
    write_broken_off,
    write_done,
)
from tithe.lab.experiment.settings import answer_settings, prompt_sets
from tithe.lab.judge.prompt_answers import answer
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.tune import tune
from tithe.printable import one_line
from tithe.report.reporter import Reporter
from tithe.run.folder import FINISHED, OUTCOME
from tithe.signals import handle_ending_signals

LEAST = 2  # cells before an estimate: the first starts the process and trains nothing
Done = Callable[[str, Mapping[str, Any]], None]
PATIENCE = 20.0  # seconds for a worker to write its record when it is stopped
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class CellError(TitheError):
    """A cell failed."""


@dataclass(frozen=True)
class Place:
    """The device of a worker.

    Args:
        name: of its log file.
        variables: environment variables that give it its GPU or threads.
    """

    name: str
    variables: Mapping[str, str]


def worker_places(parallel: int | None, device: str) -> list[Place]:
    """Return one place per usable GPU; on a CPU `parallel` places that share its threads.

    Raises:
        SettingsError: `parallel` exceeds the GPUs or cores, or several devices are named.
    """
    import torch

    from tithe.engine.devices import choose_device

    choose_device(device)  # refuses a missing device, and several
    gpus = visible_gpus() if device in ("auto", "cuda") and torch.cuda.is_available() else []
    if gpus:
        if parallel is not None and parallel > len(gpus):
            raise SettingsError(f"`parallel` is {parallel}, and there are {len(gpus)} GPUs", hint="one training each")
        return [Place(f"gpu{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[: parallel or len(gpus)]]
    cores, count = os.cpu_count() or 1, parallel or 1
    if count > cores:
        raise SettingsError(f"`parallel` is {count}, and there are {cores} cores", hint="one training a core at most")
    threads = str(max(1, cores // count))
    # Torch would take all cores in each process.
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if count > 1 else {}
    return [Place(f"worker{i}", own) for i in range(count)]


def visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


@dataclass
class Worker:
    """A process that waits for cells; it starts with the first one, and again after it has died.

    Args:
        place: its device.
        logs: folder for its log.
    """

    place: Place
    logs: Path
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def do(self, own: Path) -> dict[str, Any]:
        """Train and evaluate a cell, and return its record.

        Raises:
            CellError: it failed, or the process died.
        """
        process = self.running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(str(own)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:  # the process died while idle
            line = ""
        if not line:
            process.communicate()
            code, self.process = process.returncode, None  # the next cell starts a new process
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
                    [sys.executable, "-m", "tithe.lab.experiment.workers"],
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
        """Stop the process, even in the middle of a cell."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # in a native call that signals do not interrupt
            self.process.kill()
            self.process.communicate()
        self.process = None


def run_cells(folders: Sequence[tuple[str, Path]], where: Sequence[Place], logs: Path, done: Done) -> None:
    """Train and evaluate cells, one at a time per place.

    Args:
        folders: name and folder of each cell, in order.
        where: one place per worker.
        logs: folder of the workers' logs.
        done: called with each cell's name and record as soon as it ends.

    Raises:
        CellError: the first failure. Running cells end first; no others begin.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = deque(folders)
    workers = [Worker(place, logs) for place in where]
    failed: list[tuple[str, CellError]] = []
    pool = ThreadPoolExecutor(len(workers))  # a thread per worker, which waits for its process
    busy: dict[Future[dict[str, Any]], tuple[str, Path, Worker]] = {}
    try:
        free = list(workers)
        while busy or (waiting and not failed):
            while free and waiting and not failed:  # after a failure nothing new begins
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
        stop_workers(workers, pool)
        for _, own, _ in busy.values():
            write_broken_off(own, error)
        raise
    finally:
        stop_workers(workers, pool)
    if failed:
        name, first = failed[0]
        again = "the same command goes on from there"
        raise CellError(f"{name}: {first}", hint=f"{first.hint}; {again}" if first.hint else again)


def stop_workers(workers: Sequence[Worker], pool: ThreadPoolExecutor) -> None:
    for worker in workers:
        worker.stop()
    pool.shutdown(wait=True)


@dataclass
class Clock:
    """Estimates the remaining time from the cells done so far.

    Args:
        weights: name -> relative work of a cell.
    """

    weights: Mapping[str, float]
    began: float = field(default_factory=time.monotonic)
    finished: float = 0.0
    count: int = 0

    def done(self, name: str) -> str:
        """Count a cell as done, and return the progress in words."""
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


MODEL, EVALUATION, ITEMS = "model", "evaluation", "items.parquet"
KEPT = ("tune.json", "loss.csv", "loss.png", "loss.svg")  # files kept of a deleted model


class Log(Reporter):
    """Prints to stderr, which is the worker's log."""

    def say(self, sentence: str) -> None:
        print(one_line(sentence), file=sys.stderr, flush=True)


def run_cell(own: Path) -> dict[str, Any]:
    """Train, evaluate, and write the cell's record.

    Raises:
        TitheError: a step failed; the next try resumes from what is on disk.
    """
    spec = read_spec(own)
    began, reporter = time.monotonic(), Log()
    model, training = spec["evaluation"]["model"], None
    if spec["tune"] is not None:
        gone = (own / MODEL).exists() and not any((own / MODEL).glob("*.safetensors"))  # removed after its evaluation
        again = gone and (own / MODEL / KEPT[0]).exists()
        chosen = with_tuples({**spec["tune"], **spec.get(TRACKING, {})})
        result = tune(TuneSettings.of(chosen), own / MODEL, overwrite=again, reporter=reporter)
        model, training = str(own / MODEL), training_facts(result.record)
    settings = EvaluateSettings.of(with_tuples({**spec["evaluation"], "model": model}))
    found = evaluate(settings, own / EVALUATION, reporter=reporter)
    if spec.get("judge") is not None and training is not None:  # no judge reads an untrained model's answers
        write_answers(own, model, spec["judge"], reporter)
    record = {
        "arm": spec["arm"],
        "budget": spec["budget"],
        "seed": spec["seed"],
        "training": training,
        "evaluation": as_records(found.measured),
        "items": f"{EVALUATION}/{ITEMS}",
        "seconds": round(time.monotonic() - began, 1),
        "spec_digest": spec_digest(spec),
        OUTCOME: {"status": FINISHED},
    }
    write_done(own, record)
    if training is not None and not spec["keep_models"]:
        remove_model(own / MODEL)
    return record


def write_answers(own: Path, model: str, judge: Mapping[str, Any], reporter: Reporter) -> None:
    """Let a cell's model answer all prompt sets, before its weights are deleted.

    Raises:
        TitheError: the model cannot answer.
    """
    for prompts in prompt_sets(judge):
        answer(answer_settings(judge, prompts, model), answers_file(own, prompts), overwrite=True, reporter=reporter)


def training_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a training's record that the report needs."""
    losses = record["losses"]
    return {
        "recipe_digest": record["recipe_digest"],
        "steps": record["steps"],
        "examples": record["counts"].get("examples"),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": record["seconds"],
    }


def remove_model(folder: Path) -> None:
    """Delete weights and checkpoints, and keep the record and losses."""
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def serve(requests: TextIO, answers: TextIO) -> None:
    """Train and evaluate cells until stdin closes."""
    for line in requests:
        try:
            said: dict[str, Any] = {"done": run_cell(Path(json.loads(line)))}
        except TitheError as error:
            said = {"error": str(error), "hint": error.hint}
        except Exception as error:
            import traceback

            traceback.print_exc(file=sys.stderr)
            said = {"error": f"unexpected {type(error).__name__}: {error}", "hint": "the log shows where"}
        print(json.dumps(said, default=str), file=answers, flush=True)


def main() -> None:
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print to stdout must not mix with the answers
    with handle_ending_signals() as ending:
        try:
            serve(sys.stdin, answers)
        except KeyboardInterrupt:  # the training has written in its record that it was interrupted
            sys.exit(ending.code)


if __name__ == "__main__":
    main()
