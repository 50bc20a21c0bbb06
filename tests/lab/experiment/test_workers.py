"""Processes that do cells: what they say, how they fail, and that nothing under way is lost."""

from __future__ import annotations

import io
import json
import os
import sys
import time

import pytest

from tithe.errors import SettingsError
from tithe.lab.experiment import workers
from tithe.lab.experiment.workers import CellError, Clock, Place, duration, run_cells, worker_places

FAKE = """
import json, os, sys, time
for line in sys.stdin:
    name = os.path.basename(json.loads(line))
    if name == "dies":
        os._exit(9)
    if name == "fails":
        print(json.dumps({"error": "the loss is nan at step 3", "hint": "a lower learning rate"}), flush=True)
        continue
    time.sleep(0.2)
    told = {"name": name, "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    print(json.dumps({"done": told}), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Workers that run another program, started as the real ones are."""
    import subprocess

    (tmp_path / "fake.py").write_text(FAKE)
    real = subprocess.Popen
    monkeypatch.setattr(
        "tithe.lab.experiment.workers.subprocess.Popen",
        lambda command, **more: real([sys.executable, str(tmp_path / "fake.py")], **more),
    )
    return tmp_path


def carry_out(fake, names, count=2):
    done = {}
    where = [Place(f"w{i}", {"OMP_NUM_THREADS": "1"}) for i in range(count)]
    run_cells(
        [(name, fake / name) for name in names], where, fake / "logs", lambda name, record: done.update({name: record})
    )
    return done


def test_all_are_done_by_as_many_processes_as_there_are_places(fake):
    done = carry_out(fake, ["a", "b", "c", "d"])
    assert set(done) == {"a", "b", "c", "d"} and len({one["pid"] for one in done.values()}) == 2
    assert {one["threads"] for one in done.values()} == {"1"}
    for one in done.values():  # none of them lives on
        with pytest.raises(ProcessLookupError):
            os.kill(one["pid"], 0)


def test_a_failure_names_the_cell_and_lets_the_others_end(fake):
    done = {}
    with pytest.raises(CellError) as caught:
        run_cells(
            [("slow", fake / "slow"), ("bad", fake / "fails"), ("later", fake / "later")],
            [Place("w0", {}), Place("w1", {})],
            fake / "logs",
            lambda name, record: done.update({name: record}),
        )
    assert str(caught.value) == "bad: the loss is nan at step 3"
    assert caught.value.hint == "a lower learning rate; the same command goes on from there"
    assert set(done) == {"slow"}


def test_a_process_that_dies_is_an_error_with_its_log(fake):
    with pytest.raises(CellError, match="x: the process that trained it ended with exit code 9"):
        run_cells([("x", fake / "dies")], [Place("w0", {})], fake / "logs", lambda *_: None)
    told = json.loads((fake / "dies" / "cell.json").read_text())["outcome"]
    assert told["status"] == "failed" and told["error"] == "the process that trained it ended with exit code 9"


def test_one_place_each(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [one.variables for one in worker_places(2, "cpu")] == [{"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}] * 2
    assert [one.variables for one in worker_places(None, "cpu")] == [{}]
    with pytest.raises(SettingsError, match="`parallel` is 5, and there are 4 cores"):
        worker_places(5, "cpu")


def test_gpus_are_shared_out(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [one.variables for one in worker_places(None, "auto")] == [{"CUDA_VISIBLE_DEVICES": n} for n in "012"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert [one.name for one in worker_places(None, "cuda")] == ["gpu1", "gpu2"]
    with pytest.raises(SettingsError, match="there are 2 GPUs"):
        worker_places(3, "cuda")


def test_a_worker_answers_line_by_line_and_survives_a_failure(monkeypatch, tmp_path):
    def do_cell(own):
        if own.name == "odd":
            raise RuntimeError("boom")
        if own.name == "bad":
            raise SettingsError("no such thing", hint="another")
        return {"name": own.name}

    monkeypatch.setattr(workers, "run_cell", do_cell)
    answers = io.StringIO()
    workers.serve(io.StringIO("".join(json.dumps(str(tmp_path / n)) + "\n" for n in ("bad", "odd", "good"))), answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert said[0] == {"error": "no such thing", "hint": "another"}
    assert said[1]["error"] == "unexpected RuntimeError: boom" and said[2] == {"done": {"name": "good"}}


def test_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock({"base": 1.0, "a": 3.0, "b": 4.0}, began=0.0)
    now[0] = 60.0
    assert clock.done("base") == "1 of 3 done"  # untrained, with a process that was started: no measure of the others
    now[0] = 180.0
    assert clock.done("a") == "2 of 3 done, about 3 min left" and clock.done("b") == "3 of 3 done"
    assert [duration(s) for s in (30, 300, 7200)] == ["30 s", "5 min", "2.0 h"]
