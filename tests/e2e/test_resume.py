"""Kill it whenever you like: the same command goes on, and nobody can tell from the files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, child, records, write_jsonl
from tests.small_model import make_model

# The command with answers written after every batch, and slowed down so that there is time to interrupt it.
HASTY = """
import sys, time
import tithe.engine.store.store as store
import tithe.engine.engine as engine
store.FLUSH_SECONDS = 0.0
pause = float(sys.argv.pop(1))
real = engine.Engine.read_batch
def batch(self, *given):
    time.sleep(pause)
    return real(self, *given)
engine.Engine.read_batch = batch
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""
RESULTS = ("scores.parquet", "dropped.jsonl")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "many.jsonl", records(240))


def command(data: Path, model: Path, folder: Path) -> list[object]:
    return [
        "select",
        data,
        "--model",
        model,
        "--keep",
        "10%",
        "--batch-tokens",
        256,
        "-o",
        folder / "k.jsonl",
        "--json",
    ]


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves, without what tells of time."""
    run = folder / "k.tithe"
    return {name: (run / name).read_bytes() for name in RESULTS} | {"kept": (folder / "k.jsonl").read_bytes()}


def keys_of_parts(folder: Path) -> list[set[bytes]]:
    return [set(pq.read_table(part)["key"].to_pylist()) for part in sorted(folder.rglob("part-*.parquet"))]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Whether it came true before the process ended."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise AssertionError("nothing happened in five minutes")


def count_parts(run: Path) -> int:
    return len(list(run.rglob("part-*.parquet")))


MOMENTS: dict[str, Callable[[Path], object]] = {
    "early": lambda run: count_parts(run) >= 2,
    "writing a part": lambda run: count_parts(run) >= 5 and list(run.rglob("*.tmp")),
    "later": lambda run: count_parts(run) >= 30,
    "writing a result": lambda run: list(run.glob(".*.part")),
    "a result is there": lambda run: (run / "scores.parquet").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [["early"], pytest.param(list(MOMENTS), marks=pytest.mark.thorough)],
    ids=["once", "at every moment"],
)
def test_killed_and_run_again(tithe: Command, many: Path, model_dir: Path, tmp_path: Path, moments: list[str]) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = tithe.ok(*command(many, model_dir, straight)).json
    run = broken / "k.tithe"
    for name in moments:
        process = child(HASTY, 0.05, *command(many, model_dir, broken))
        reached = wait_for(lambda name=name: MOMENTS[name](run), process)
        process.kill()
        process.communicate()
        assert reached or name in ("writing a result", "a result is there"), name  # those pass in a blink
        (broken / "k.jsonl").unlink(missing_ok=True)
    before = set().union(*keys_of_parts(run))
    assert before
    again = tithe.ok(*command(many, model_dir, broken)).json
    assert files(broken) == files(straight)
    nothing_twice(again["work"], whole["work"]["passes_computed"], len(before))
    parts = keys_of_parts(run)
    assert sum(map(len, parts)) == len(set().union(*parts)) == whole["work"]["passes_computed"]
    assert not list(broken.rglob("*.part")) and not list(broken.rglob("*.tmp"))
    same = ("settings", "scorers", "template", "model", "counts", "selection")
    assert {key: again[key] for key in same} == {key: whole[key] for key in same}


def nothing_twice(work: dict[str, int], total: int, stored: int) -> None:
    """Stored passes are not read again: what is on disk is whole batches."""
    assert work["passes_reused"] == stored
    assert work["passes_computed"] + work["passes_reused"] == total


@pytest.mark.slow
def test_interrupted_keeps_what_was_scored(tithe: Command, many: Path, model_dir: Path, tmp_path: Path) -> None:
    # So slow that it is still at work when the second command has started, on a busy machine too.
    process = child(HASTY, 2, *command(many, model_dir, tmp_path / "run"))
    assert wait_for(lambda: list(tmp_path.rglob("part-*.parquet")), process)
    second = tithe.fails(*command(many, model_dir, tmp_path / "run"))
    assert "another process is working in the run folder" in second.err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == "", err
    assert "answers are stored in" in err.splitlines()[-3]
    assert err.splitlines()[-2:] == [
        "error: interrupted",
        "hint: what was scored or answered by then is kept: the same command goes on from there",
    ]
    stored = len(set().union(*keys_of_parts(tmp_path / "run")))
    assert stored
    nothing_twice(tithe.ok(*command(many, model_dir, tmp_path / "run")).json["work"], 480, stored)


@pytest.mark.slow
def test_answers_of_other_settings_are_not_met(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """One folder for everything gives what a fresh folder for each gives."""
    other = make_model(tmp_path / "other", seed=1)
    variants: list[list[object]] = [
        ["--model", model_dir, "--dtype", "fp32"],
        ["--model", other, "--dtype", "fp32"],
        ["--model", model_dir, "--dtype", "bf16"],
        ["--model", model_dir, "--dtype", "fp32", "--template", "alpaca"],
        ["--model", model_dir, "--dtype", "fp32", "--max-length", 60],
        ["--model", model_dir, "--dtype", "fp32", "--eos"],
        ["--model", model_dir, "--dtype", "fp32", "--alone-header", "Answer: "],
    ]
    seen = []
    for i, variant in enumerate(variants * 2):
        fresh = tmp_path / f"fresh{i}"
        shared = tithe.ok("score", small, *variant, "--run-dir", tmp_path / "shared", "--json").json
        tithe.ok("score", small, *variant, "--run-dir", fresh)
        got, expected = (pq.read_table(run / "scores.parquet") for run in (tmp_path / "shared", fresh))
        if i < len(variants):
            assert not any(got["ifd"].equals(table["ifd"]) for table in seen)
            seen.append(got)
        else:
            assert shared["work"]["passes_computed"] == 0 and got.equals(seen[i - len(variants)])
        for name in ("ifd", "nll_given", "nll_alone"):
            a, b = got[name].to_numpy(), expected[name].to_numpy()
            np.testing.assert_allclose(a, b, rtol=2e-2 if "bf16" in variant else 1e-5)


def test_weights_changed_in_place_are_another_model(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    score = ("score", small, "--model", model, "--run-dir", tmp_path / "run", "--json")
    first = tithe.ok(*score).json["work"]["passes_computed"]
    shutil.copy(make_model(tmp_path / "other", seed=1) / "model.safetensors", model)
    assert tithe.ok(*score).json["work"] | {
        "seconds": 0,
        "reading_seconds": 0,
        "waited_for_tokens_seconds": 0,
        "longest_wait_seconds": 0,
        "tokens_per_second": 0,
        "tokens_read": 0,
    } == {
        "passes_computed": first,
        "passes_reused": 0,
        "passes_out_of_memory": 0,
        "tokens_read": 0,
        "seconds": 0,
        "reading_seconds": 0,
        "waited_for_tokens_seconds": 0,
        "longest_wait_seconds": 0,
        "tokens_per_second": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_neighbours_order_and_batch_budget_do_not_change_a_score(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    lines = small.read_text().splitlines()
    random.Random(0).shuffle(lines)
    shuffled, alone = tmp_path / "shuffled.jsonl", tmp_path / "alone.jsonl"
    shuffled.write_text("\n".join(lines) + "\n")
    alone.write_text(lines[7] + "\n")

    def scored(data: Path, *arguments: object) -> dict[str, tuple[float, ...]]:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        tithe.ok("score", data, "--model", model_dir, "--dtype", dtype, "--run-dir", folder, *arguments)
        rows = pq.read_table(folder / "scores.parquet").to_pylist()
        return {row["id"]: (row["ifd"], row["nll_given"], row["nll_alone"]) for row in rows}

    base = scored(small)
    for other in (
        scored(small, "--batch-tokens", 64),
        scored(small, "--batch-tokens", 100_000, "--workers", 1),
        scored(small, "--per-token"),
        scored(small, "--scorer", "ifd,perplexity,superfiltering"),
        scored(shuffled),
        scored(alone),
    ):
        assert set(other) <= set(base)
        for id_, values in other.items():
            np.testing.assert_allclose(values, base[id_], rtol=tolerance)


def test_a_data_set_that_changes_meanwhile_is_noticed(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tithe.engine.engine import Engine

    real = Engine.read_batch

    def replaced(self: Engine, *arguments: Any) -> Any:
        other = write_jsonl(tmp_path / f"other{time.monotonic_ns()}.jsonl", records(61))
        other.replace(small)
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "read_batch", replaced)
    failed = tithe.fails("select", small, "--model", model_dir, "-o", tmp_path / "k.jsonl")
    assert "has changed since this run began to read it" in failed.err
    assert not (tmp_path / "k.jsonl").exists() and not (tmp_path / "k.tithe" / "scores.parquet").exists()
    assert json.loads((tmp_path / "k.tithe" / "run.json").read_text())["outcome"]["status"] == "failed"
    assert list((tmp_path / "k.tithe").rglob("part-*.parquet"))


def test_touching_the_data_set_is_no_change(tithe: Command, small: Path, model_dir: Path) -> None:
    import tithe as library
    from tithe.errors import DataError

    result = library.select(small, scorer="length", model=str(model_dir), keep=5)
    os.utime(small)
    result.write(small.with_name("kept.jsonl"))
    small.write_text(json.dumps(records(1)[0]) + "\n")
    with pytest.raises(DataError, match="has changed"):
        result.write(small.with_name("again.jsonl"))
