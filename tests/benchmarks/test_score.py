"""The benchmark against the authors' loop, at a toy's size: every contender runs, and what is written adds up."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "score.py"
CONTENDERS = ["loop", "lean loop", "padded", "tithe fp32"]


@pytest.mark.slow
def test_all_contenders_read_the_same_records(tmp_path: Path) -> None:
    words = ("hello", "thanks", "never", "perhaps", "sunshine", "goodbye")
    records = [
        {"instruction": f"Say {word} {n} times.", "input": "" if n % 2 else "as a song", "output": f"{word} " * (n + 2)}
        for n, word in enumerate(words)
    ]
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    command = [sys.executable, SCRIPT, "--data", data, "--out", out, "--vocab", "300", "--layers", "1", "--width", "64"]
    more = ["--runs", "1", "--cores", "1", "--contenders", *CONTENDERS]
    subprocess.run([*command, *more], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    written = json.loads(out.read_text(encoding="utf-8"))
    (result,) = written["results"]
    rows = result["contenders"]
    assert list(rows) == CONTENDERS and result["cores"] == 1 and written["command"].startswith("python ")
    assert result["parameters"] == 2 * 300 * 64 + 4 * 64 * 64 + 3 * 64 * (64 * 8 // 3 // 32 * 32) + 3 * 64
    assert rows["loop"]["tokens"] == rows["lean loop"]["tokens"] == rows["padded"]["tokens"]
    ours = rows["tithe fp32"]
    assert ours["tokens_read"] < ours["tokens"] <= rows["loop"]["tokens"]  # the preamble once; no last tokens
    assert 0 < ours["utilisation"] < 1 and ours["workers"] == [1]


def test_ratios_and_shares_are_taken_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    score = importlib.import_module("score")
    turns = [
        {name: {"seconds": seconds, "tokens": 100, "peak_mb": 5.0} for name, seconds in one.items()}
        for one in (
            {"loop": 8.0, "tithe fp32": 2.0},
            {"loop": 30.0, "tithe fp32": 10.0},
            {"loop": 5.0, "tithe fp32": 1.0},
        )
    ]
    for one, gflops in zip(turns, (10.0, 4.0, 9.0), strict=True):
        one["tithe fp32"] |= {"gflops": gflops, "tokens_read": 80, "workers": 1, "batch_tokens": 1024}
    row = score.row("tithe fp32", turns, [{"fp32": 20.0}, {"fp32": 10.0}, {"fp32": 10.0}])
    assert row["ratios_to_the_loop"] == [4.0, 3.0, 5.0] and row["times_the_loop"] == 4.0
    assert row["utilisation"] == 0.5  # the middle of 0.5, 0.4 and 0.9
    assert (row["seconds"], row["tokens_a_second"]) == (2.0, 50)
