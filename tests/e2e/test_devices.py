"""Several devices, of which the CPU is two here: the same files, and whatever is killed, the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, alive, child, records, write_jsonl
from tests.e2e.test_resume import count_parts, files, keys_of_parts, nothing_twice, wait_for

# Answers are written after every batch, and each takes its time.
HASTY = """
import sys, time
import tithe.engine.store.store as store
store.FLUSH_SECONDS = 0.0
pause = float(sys.argv.pop(1))
real = store.Store.put
def put(self, rows):
    time.sleep(pause)
    return real(self, rows)
store.Store.put = put
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""


def command(data: Path, model: Path, folder: Path, device: str = "cpu,cpu") -> list[object]:
    given = ["select", data, "--model", model, "--keep", "10%", "--batch-tokens", 256, "--dtype", "fp32"]
    return [*given, "--device", device, "-o", folder / "k.jsonl", "--json"]


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def at_work(process: subprocess.Popen[str], run: Path, parts: int) -> bool:
    return count_parts(run) >= parts and len(children(process)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed",
    [["child"], pytest.param(["child", "parent", "interrupt"], marks=pytest.mark.thorough)],
    ids=["once", "in every way"],
)
def test_killed_and_run_again(tithe: Command, model_dir: Path, tmp_path: Path, killed: list[str]) -> None:
    """The child, the parent, and Ctrl-C, one after the other on one run folder."""
    data = write_jsonl(tmp_path / "many.jsonl", records(240))
    straight, broken, one = tmp_path / "straight", tmp_path / "broken", tmp_path / "one"
    done = tithe.ok(*command(data, model_dir, straight))
    whole = done.json
    assert "on cpu, cpu (one process each) in float32" in done.err
    assert whole["engine"]["devices"] == ["cpu", "cpu"]
    run = broken / "k.tithe"
    for n, how in enumerate(killed, 1):
        process = child(HASTY, 0.2, *command(data, model_dir, broken))
        enough = partial(at_work, process, run, 4 * n)
        assert wait_for(enough, process), how
        pids = children(process)
        victim, sent = {
            "child": (pids[0], signal.SIGKILL),
            "parent": (process.pid, signal.SIGKILL),
            "interrupt": (process.pid, signal.SIGINT),
        }[how]
        os.kill(victim, sent)
        out, err = process.communicate(timeout=60)
        lines = err.splitlines()
        assert out == "" and "Traceback" not in err
        if how == "child":
            assert process.returncode == 1
            assert lines[-2].startswith("error: the process on `cpu (1 of 2)` ended with signal 9 (SIGKILL)")
            assert "run the same command again to continue" in lines[-1]
        if how == "interrupt":
            assert process.returncode == 130 and lines[-2] == "error: interrupted"
        end = time.monotonic() + 30
        while any(map(alive, pids)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, pids)), how
    before = set().union(*keys_of_parts(run))
    again = tithe.ok(*command(data, model_dir, broken)).json
    assert files(broken) == files(straight)
    nothing_twice(again["work"], whole["work"]["passes_computed"], len(before))

    tithe.ok(*command(data, model_dir, one, "cpu"))
    tables = [pq.read_table(folder / "k.tithe" / "scores.parquet") for folder in (straight, one)]
    for name in ("ifd", "nll_given", "nll_alone"):
        np.testing.assert_allclose(*(table[name].to_numpy() for table in tables), rtol=1e-6)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu,grape", "no device `grape`"),
        ("cpu,", "`cpu,` is no list of devices"),
        ("cuda:all", "device `cuda` is not available here"),
    ],
)
def test_devices_that_there_are_not(
    tithe: Command, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = write_jsonl(tmp_path / "few.jsonl", records(4))
    assert message in tithe.fails(*command(data, model_dir, tmp_path, device)).err
    assert not (tmp_path / "k.jsonl").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (",", "`,` is no list of devices"),
        ("cuda:99", "there is no device `cuda:99`"),
        ("cpu,cuda:0", "names devices of 2 kinds"),
        ("meta", "device `meta` is not available here"),
    ],
)
def test_a_device_is_refused_where_no_model_is_loaded(
    tithe: Command, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    data = write_jsonl(tmp_path / "few.jsonl", records(4))
    options = ("--model", model_dir, "--device", device)
    done = tithe.fails("select", data, *options, "--scorer", "length", "--keep", 2, "-o", tmp_path / "k.jsonl")
    assert message in done.err
    done = tithe.fails("score", data, *options, "--scorer", "random", "-o", tmp_path / "s.parquet")
    assert message in done.err


def test_a_device_is_refused_where_all_was_measured_before(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", records(4))
    measure = ("evaluate", model_dir, "--holdout", data, "--template", "plain", "-o", tmp_path / "e")
    tithe.ok(*measure, "--device", "cpu")
    assert "no device `grape`" in tithe.fails(*measure, "--device", "grape").err


def test_a_model_is_not_spread_over_processors(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", records(4))
    done = tithe.fails(*command(data, model_dir, tmp_path, "cpu,cpu"), "--shard")
    assert "`shard` spreads a model over several GPUs, not over cpu, cpu" in done.err


def test_what_trains_and_generates_has_one_device(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", records(4))
    done = tithe.fails("tune", data, "--model", model_dir, "--device", "cpu,cpu", "-o", tmp_path / "tuned")
    assert "`cpu,cpu` names several devices, but this command uses one" in done.err
