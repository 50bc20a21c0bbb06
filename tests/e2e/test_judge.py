"""`tithe judge` and `tithe contamination` as commands: what they print, where they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Command, read_jsonl, write_jsonl
from tests.lab.endpoint.server import reply, serve


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    found = []
    for name in ("a", "b"):
        rows = [{"prompt": f"Question {i}?", "response": f"answer {i} of {name}"} for i in range(4)]
        found.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    return found[0], found[1]


def for_a(number: int, body: dict[str, Any]) -> Any:
    """A judge that is for A at every question but one."""
    text = body["messages"][-1]["content"]
    if "Question 3?" in text:
        return reply("both are fine")
    return reply("9 2" if text.index(" of a\n") < text.index(" of b\n") else "2 9")


def test_compare_and_tally(tithe: Command, sides: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    with serve(for_a) as played:
        call = ["judge", "compare", *sides, "--judge", played.url, "--judge-model", "j", "-o", out]
        done = tithe.ok(*call, "--name", "vicuna", "--attempts", 2, "--json")
        again = tithe.fails(*call)
    assert done.json["tally"]["win"] == 3 and done.json["tally"]["no_verdict"] == 1
    assert done.json["settings"]["name"] == "vicuna"
    assert "no verdict, 1: no line of the reply holds two numbers and nothing else" in done.err
    assert "8 replies" in done.err or "10 replies" in done.err
    assert "win rate 2.0000 (1 is equally good), 95 % interval" in done.err
    assert "exists" in again.errors[0] and "--overwrite" in again.hints[0]
    numbers = tithe.ok("judge", "tally", out, "--json").json
    assert {"win", "tie", "loss", "no_verdict", "n", "win_rate", "interval"} <= set(numbers)
    assert (numbers["win"], numbers["tie"], numbers["loss"], numbers["no_verdict"], numbers["n"]) == (3, 0, 0, 1, 3)
    assert set(numbers["interval"]) == {"low", "high", "level", "method"}
    narrower = tithe.ok("judge", "tally", out, "--level", 0.5, "--json").json["interval"]
    assert narrower["low"] > numbers["interval"]["low"] and narrower["level"] == 0.5


def test_a_judge_that_goes_by_the_order_is_warned_of(tithe: Command, sides: tuple[Path, Path], tmp_path: Path) -> None:
    with serve(lambda number, body: reply("8 3")) as played:
        call = ["judge", "compare", *sides, "--judge", played.url, "--judge-model", "j", "-o", tmp_path / "r.jsonl"]
        done = tithe.ok(*call)
    assert "in 4 of 4 pairs the judge votes for the answer shown first" in " ".join(done.err.split())


def test_answer(tithe: Command, tmp_path: Path, model_dir: Path) -> None:
    asked = write_jsonl(tmp_path / "p.jsonl", [{"text": f"Say {i}"} for i in range(3)])
    out = tmp_path / "answers.jsonl"
    call = ["judge", "answer", asked, "--model", model_dir, "--max-new-tokens", 4, "-o", out]
    done = tithe.ok(*call, "--limit", 2, "--json")
    assert done.json["counts"]["answers"] == 2 and len(read_jsonl(out)) == 2
    assert "2 answers (0 found here)" in done.err
    assert (tmp_path / "answers.tithe" / "run.json").exists()


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (["answer"], "no prompts are given"),
        (["answer", "p.jsonl"], "no model is given"),
        (["answer", "p.jsonl", "-m", "m"], "no place for the answers is given"),
        (["compare", "a", "b"], "no judge is given"),
        (["compare", "a", "b", "--judge", "m"], "no place for the reviews is given"),
    ],
)
def test_usage(tithe: Command, call: list[str], why: str) -> None:
    assert why in tithe.fails("judge", *call, code=2).errors[0]


def test_nobody_there(tithe: Command, sides: tuple[Path, Path], tmp_path: Path) -> None:
    call = ["judge", "compare", *sides, "--judge", "http://localhost:9/v1", "-o", tmp_path / "r.jsonl"]
    assert "no model is given for the judge at" in tithe.fails(*call).errors[0]
    failed = tithe.fails("judge", "compare", sides[0], tmp_path / "none.jsonl", *call[4:], "--judge-model", "j")
    assert "no file `" in failed.errors[0]


def test_a_damaged_review_file(tithe: Command, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"data": [{"scores": "[1, 2]"}]}))
    failed = tithe.fails("judge", "tally", path)
    assert "record 1: `scores_reverse` is missing" in failed.errors[0]


# ---------------------------------------------------------------------------------------------------- contamination


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twenty records, no two of which share a word."""
    rows = [{"instruction": f"ask{i}", "output": " ".join(f"w{i}x{j}" for j in range(20)), "n": i} for i in range(20)]
    return write_jsonl(tmp_path / "pool.jsonl", rows)


def test_contamination(tithe: Command, pool: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [*read_jsonl(pool)[:5], {"question": "Why not?"}])
    done = tithe.ok("contamination", pool, "--against", held, "-o", tmp_path / "report.json", "--json")
    counts = done.json["against"]["held.jsonl"]
    assert (counts["items"], counts["items_hit"], counts["examples_hit"]) == (6, 5, 5)
    assert "5 of 20 examples share text with an evaluation file" in done.err
    assert f"{pool}:" in done.err and f"{held}:" in done.err
    assert len(json.loads((tmp_path / "report.json").read_text())["examples"]) == 5
    assert "exists" in tithe.fails("contamination", pool, "--against", held, "-o", tmp_path / "report.json").errors[0]
    assert "no evaluation file given" in tithe.fails("contamination", pool, code=2).errors[0]
    assert "no evaluation file `x`" in tithe.fails("contamination", pool, "--against", "x").errors[0]
    itself = tithe.fails("contamination", pool, "--against", held, "-o", held, "--overwrite")
    assert "is the data set itself" in itself.errors[0]


def test_select_without_what_is_contaminated(tithe: Command, pool: Path, tmp_path: Path, model_dir: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", read_jsonl(pool)[:5])
    call = ["select", pool, "-s", "random", "-m", model_dir, "-k", 20, "-o", tmp_path / "k.jsonl"]
    done = tithe.ok(*call, "--drop-contaminated", held, "--json")
    dropped = done.json["selection"]["dropped"]
    assert sum(n for reason, n in dropped.items() if reason.startswith("contaminated: ")) == 5
    assert done.json["contamination"]["against"]["held.jsonl"]["items_hit"] == 5
    assert [row["n"] for row in read_jsonl(tmp_path / "k.jsonl")] == list(range(5, 20))
    reasons = [row["tithe_reason"] for row in read_jsonl(tmp_path / "k.tithe" / "dropped.jsonl")]
    assert len(reasons) == 5 and all("held.jsonl" in reason for reason in reasons)
