"""`tithe bench`: the table on stderr, the record on stdout and in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import Command
from tithe.engine.measure import machine, matmul


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "ROUND", 1e-5)
    monkeypatch.setattr(machine, "SECONDS", 1e-4)
    monkeypatch.setattr(machine, "CPU_SQUARE", 32)


def test_a_bench(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    given = ("bench", small, "--model", model_dir, "--scorer", "ifd", "--limit", 6, "--workers", 1)
    done = tithe.ok(*given, "--batch-tokens", 512, "--json", "-o", out)
    assert done.json == json.loads(out.read_text())
    assert "6 of 60 records" in done.err and "512 tokens a batch, 1 at once" in done.err and "whole job" in done.err
    again = tithe.fails(*given, "-o", out)
    assert "bench.json" in again.err and "measuring" not in again.err


def test_what_is_wrong_is_one_sentence(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    assert "needs a model" in tithe.fails("bench", small).err
    assert "no scorer `idf`" in tithe.fails("bench", small, "--model", model_dir, "--scorer", "idf").err
    (tmp_path / "none.jsonl").write_text("")
    assert "none.jsonl" in tithe.fails("bench", tmp_path / "none.jsonl", "--model", model_dir).err
    assert "no data set" in tithe.fails("bench", "--model", model_dir, code=2).err


def test_what_is_learned_first_is_not_timed(tithe: Command, small: Path, model_dir: Path) -> None:
    how = (small, "--scorer", "sound(records=40)", "--model", model_dir)
    failed = tithe.fails("bench", *how)
    assert "sound reads `parts`, `probes`, which a sample cannot measure" in failed.errors[0]
    planned = tithe.ok("plan", *how, "--json").json
    assert "what the run learns first" in planned["time"]["not_measured"] and planned["counts"]["forward_tokens"] > 0
