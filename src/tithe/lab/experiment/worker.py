"""A process that does cells: `python -m tithe.lab.experiment.worker`. It reads folders from stdin, and ends with it,
in the middle of a cell where the process that started it is gone.

A process of its own keeps the memory of one training from the next, and lets several GPUs work at once. What it says
goes to stderr; stdout has one JSON object per line: `{"done": ...}` or `{"error": ..., "hint": ...}`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tithe.engine.workers.child_process import end_with_parent
from tithe.errors import TitheError
from tithe.lab.evaluate.evaluation import evaluate
from tithe.lab.evaluate.measured import as_records
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.arm_judging import write_answers
from tithe.lab.experiment.cells import read_spec, restored, spec_digest, write_done
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.tune import tune
from tithe.printable import one_line
from tithe.report.reporter import Reporter
from tithe.run.folder import FINISHED, OUTCOME
from tithe.signals import ended_by_signals

MODEL, EVALUATION, ITEMS = "model", "evaluation", "items.parquet"
KEPT = ("tune.json", "loss.csv", "loss.png", "loss.svg")  # of a model that is removed


class Log(Reporter):
    """Says it to stderr, which is the worker's log."""

    def say(self, sentence: str) -> None:
        print(one_line(sentence), file=sys.stderr, flush=True)


def do_cell(own: Path) -> dict[str, Any]:
    """Train, evaluate, and write the cell's record.

    Raises:
        TitheError: what stops it; what was done is found again the next time.
    """
    spec = read_spec(own)
    began, reporter = time.monotonic(), Log()
    model, training = spec["evaluation"]["model"], None
    if spec["tune"] is not None:
        gone = (own / MODEL).exists() and not any((own / MODEL).glob("*.safetensors"))  # removed once it was evaluated
        again = gone and (own / MODEL / KEPT[0]).exists()
        result = tune(TuneSettings.of(restored(spec["tune"])), own / MODEL, overwrite=again, reporter=reporter)
        model, training = str(own / MODEL), brief(result.record)
    settings = EvaluateSettings.of(restored({**spec["evaluation"], "model": model}))
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


def brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the table needs of a training's record."""
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
    """Weights and checkpoints go, what tells of the training stays."""
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def serve(requests: TextIO, answers: TextIO) -> None:
    """Do cells until there are no more requests."""
    for line in requests:
        try:
            said: dict[str, Any] = {"done": do_cell(Path(json.loads(line)))}
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
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    with ended_by_signals() as ending:
        try:
            serve(sys.stdin, answers)
        except KeyboardInterrupt:  # by now the training says in its record that it was interrupted
            sys.exit(ending.code)


if __name__ == "__main__":
    main()
