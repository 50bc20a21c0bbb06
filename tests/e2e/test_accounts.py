"""However a command ends, its own record tells of it: stopped by a signal, failed half way, and gone on to the end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Command, child, records, write_jsonl
from tests.e2e.test_bad_input import FULL_DISK
from tests.e2e.test_resume import HASTY, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")]

# The command with a pause before every record of a data set; says when it comes to the first.
SLOW_RECORDS = """
import sys, time
from tithe.data.counts import RecordCounts
pause = float(sys.argv.pop(1))
real = RecordCounts.add_item
def add_item(self, item):
    if not self.records:
        print("reading", file=sys.stderr, flush=True)
    time.sleep(pause)
    real(self, item)
RecordCounts.add_item = add_item
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""
# The command with pauses after every optimiser step.
SLOW_STEPS = """
import sys, time
from tithe.lab.tune import response_trainer
pause = float(sys.argv.pop(1))
real = response_trainer.Listener.on_step_end
def on_step_end(self, *given, **named):
    time.sleep(pause)
    return real(self, *given, **named)
response_trainer.Listener.on_step_end = on_step_end
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""


def read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def lock(folder: Path) -> bool:
    return (folder / ".lock").exists()


def tiers(path: Path) -> Path:
    rows = records(48)
    return write_jsonl(path, [row | {"tier": "high" if i % 2 else "low"} for i, row in enumerate(rows)])


def tune(model: object, out: Path, **more: object) -> list[object]:
    """A training of six steps on the starter set."""
    given = {"limit": 24, "train-batch-size": 4, "max-length": 128, "max-steps": 6, "save-steps": 0} | more
    flags = (part for name, value in given.items() for part in (f"--{name}", value))
    return ["tune", "starter", "-m", model, "-o", out, *flags]


@pytest.mark.parametrize(("name", "save"), [pytest.param("SIGINT", 1, marks=pytest.mark.thorough), ("SIGTERM", 0)])
def test_a_training_that_is_stopped(tithe: Command, model_dir: Path, tmp_path: Path, name: str, save: int) -> None:
    out, number = tmp_path / "tuned", getattr(signal, name)
    given = tune(model_dir, out, **{"save-steps": save})
    process = child(SLOW_STEPS, 1.0, *given)
    begun = "checkpoints/*/complete.json" if save else "begun.json"
    assert wait_for(lambda: list(out.glob(begun)), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    told = read(out / "tune.json")
    steps = told["outcome"].pop("steps_stored")
    assert told["outcome"] == {"status": "interrupted", "by": name} and bool(steps) == bool(save)
    assert told.keys() >= {"settings", "versions", "dataset", "model", "recipe", "template"}
    kept = "1 step is" if steps == 1 else f"{steps} steps are"
    said = f"{kept} stored in `{out}`: run the same command again to go on"
    assert (said if save else "no checkpoint was made: the same command begins anew") in err
    assert (out / "checkpoints").exists() == bool(save) and not (out / "model.safetensors").exists()

    again = tithe.ok(*given, "--json").json
    assert again["outcome"] == {"status": "finished"} and again == read(out / "tune.json")
    assert again["resumed_after_step"] == (steps or None) and len(again["losses"]) == 6
    assert "nothing to do" in tithe.ok(*given).err


def test_a_training_that_finds_no_room(tithe: Command, tmp_path: Path) -> None:
    """The weights do not fit, the record does."""
    out = tmp_path / "tuned"
    given = tune("pocket", out, **{"max-steps": 2, "limit": 8})
    process = child(FULL_DISK, 1_000_000, *given)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err, err
    told = read(out / "tune.json")
    assert told["outcome"]["status"] == "failed" and "cannot be written" in told["outcome"]["error"]
    assert told["counts"]["trained_on"] == 8 and "unexpected" not in told["outcome"]
    assert f"error: the output `{out}` cannot be written: " in err and not list(out.glob("*.safetensors"))


def test_an_evaluation_that_is_stopped(tithe: Command, tmp_path: Path) -> None:
    held, out = write_jsonl(tmp_path / "held.jsonl", records(120)), tmp_path / "ev"
    given = ["evaluate", "pocket", "--holdout", held, "-o", out]
    process = child(HASTY, 2.0, *given)
    assert wait_for(lambda: (out / "evaluation.json").exists(), process)
    assert read(out / "evaluation.json")["outcome"] == {"status": "running"}
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    told = read(out / "evaluation.json")
    assert told["outcome"] == {"status": "interrupted", "by": "SIGTERM", "metrics_stored": 0}
    assert told["metrics"] == [] and told["model"]["name"] == "pocket"
    again = tithe.ok(*given, "--json").json
    assert again["outcome"] == {"status": "finished"} and again == read(out / "evaluation.json")


def test_an_evaluation_that_fails_keeps_what_was_measured(
    tithe: Command, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, out = write_jsonl(tmp_path / "held.jsonl", records(20)), tmp_path / "ev"
    given = ["evaluate", model_dir, "--holdout", held, "-o", out]
    first = tithe.ok(*given, "--json").json
    write_jsonl(held, records(24))
    with monkeypatch.context() as patch:
        patch.setattr("tithe.lab.evaluate.evaluation.measure_holdout", broken)
        tithe(*given)
    told = read(out / "evaluation.json")
    assert told["outcome"]["status"] == "failed" and told["outcome"]["unexpected"] == "ZeroDivisionError"
    assert told["metrics"] == []  # those of other data are gone
    again = tithe.ok(*given, "--json").json
    assert again["metrics"][0]["items"] == 24 and first["metrics"][0]["items"] == 20


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a fault")


def test_a_head_whose_training_is_stopped(tithe: Command, tmp_path: Path) -> None:
    source, out = tiers(tmp_path / "tiers.jsonl"), tmp_path / "head"
    given = ["head", "train", source, "-m", "pocket", "--test-share", 0, "-o", out]
    process = child(HASTY, 2.0, *given)
    assert wait_for(lambda: lock(out), process)
    time.sleep(1)  # the record is kept from a moment after that on
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and "nothing is kept" in err, err
    told = read(out / "report.json")
    assert told["outcome"] == {"status": "interrupted", "by": "SIGINT"} and told["dataset"]["source"] == str(source)
    again = tithe.ok(*given, "--json").json
    assert again["outcome"] == {"status": "finished"} and again == read(out / "report.json")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_import_of_tiers_that_is_stopped(tithe: Command, tmp_path: Path, name: str) -> None:
    source, out = tiers(tmp_path / "in.jsonl"), tmp_path / "t.jsonl"
    process = child(SLOW_RECORDS, 0.5, "tiers", "import", source, "-o", out)
    assert process.stderr is not None and process.stderr.readline() == "reading\n"
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + getattr(signal, name) and not out.exists(), err
    assert read(tmp_path / "t.tithe" / "run.json")["outcome"] == {"status": "interrupted", "by": name}
    tithe.ok("tiers", "import", source, "-o", out)
    assert read(tmp_path / "t.tithe" / "run.json")["outcome"] == {"status": "finished"}


def test_a_search_for_contamination_that_is_stopped(tithe: Command, tmp_path: Path) -> None:
    against, out = write_jsonl(tmp_path / "eval.jsonl", records(5)), tmp_path / "report.json"
    given = ["contamination", "starter", "--against", against, "-o", out]
    process = child(SLOW_RECORDS, 0.05, *given)
    assert process.stderr is not None and process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "begins anew" in err, err
    told = read(out)
    assert told["outcome"] == {"status": "interrupted", "by": "SIGTERM"} and "examples" not in told
    assert told["counts"]["records"] < 600 and told["against"]["eval.jsonl"]["items"] == 5
    tithe.ok(*given)  # nothing is lost by it, so that no `--overwrite` is needed
    told = read(out)
    assert told["outcome"] == {"status": "finished"} and told["counts"]["records"] == 600
    assert "exists" in tithe.fails(*given).errors[0]
