"""Data comes from several files, a pattern, a pipe, and goes nowhere that it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Command, read_jsonl


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}).encode() + b"\n" for i in numbers)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "b.jsonl").write_bytes(lines(2, 3))
    (tmp_path / "a.jsonl").write_bytes(lines(0, 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_output_is_none_of_the_inputs(here: Path, tithe: Command, model_dir: Path) -> None:
    how = ("--scorer", "length", "--model", model_dir, "--overwrite", "-o")
    before = {path: path.read_bytes() for path in here.glob("*.jsonl")}
    for data in (["a.jsonl", "b.jsonl"], ["*.jsonl"], ["--dataset", "b.jsonl,a.jsonl"]):
        assert tithe.fails("select", *data, *how, "b.jsonl").errors == [
            "error: the output `b.jsonl` is the data set itself"
        ]
    done = tithe.fails("select", "*.jsonl", *how, "new.jsonl")
    assert done.errors == ["error: the output `new.jsonl` matches the pattern `*.jsonl`"]
    assert {path: path.read_bytes() for path in here.glob("*.jsonl")} == before


def test_several_files_on_the_command_line(here: Path, tithe: Command, model_dir: Path) -> None:
    tithe.ok(
        "select", "a.jsonl", "b.jsonl", "--scorer", "random", "--keep", 4, "--model", model_dir, "-o", "out/k.jsonl"
    )
    assert [record["completion"] for record in read_jsonl(here / "out" / "k.jsonl")] == ["a0", "a1", "a2", "a3"]


def test_a_run_from_a_pipe_goes_on_with_a_file_but_cannot_be_looked_at(
    here: Path, tithe: Command, model_dir: Path
) -> None:
    how = ["--scorer", "ifd", "--model", str(model_dir), "--run-dir", "run", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tithe.cli", "score", "-", *how], input=lines(0, 1, 2), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads(done.stdout)
    assert record["counts"]["examples"] == 3 and record["dataset"]["gone"] and "path" not in record["dataset"]
    failed = tithe.fails("look", "run")
    assert failed.errors == ["error: the data of this run, -, is not on disk: it came from a pipe or from Python"]
    (here / "same.jsonl").write_bytes(lines(0, 1, 2))
    again = tithe.ok("score", "same.jsonl", *how).json
    assert again["work"]["passes_computed"] == 0 and again["dataset"]["digest"] == record["dataset"]["digest"]
    tithe.ok("look", "run")


def test_a_pattern_is_found_again_from_another_folder(
    here: Path, tithe: Command, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tithe.ok("score", "*.jsonl", "--scorer", "length", "--model", model_dir, "--run-dir", "run")
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert "4 examples" in tithe.ok("look", "../run").out
    (here / "c.jsonl").write_bytes(lines(9))
    assert "has changed since the run" in tithe.fails("look", "../run", "--overwrite").errors[0]
