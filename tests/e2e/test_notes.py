"""What records hold that is not read as it may be meant, and exact duplicates: on the screen and in the run record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Command, write_jsonl


def dialogue(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


RECORDS = [
    dialogue(("user", "u1"), ("assistant", "a1"), ("user", "u2")),
    dialogue(("user", "u1"), ("assistant", "a1"), ("user", "thanks")),
    dialogue(("user", "u3"), ("assistant", "a3")),
    dialogue(("user", "u3"), ("assistant", "a3"), label=False),
]
ENDS = "2 of 4 records: the dialogue ends with a turn of the user after the last response: an earlier turn is scored"


@pytest.mark.parametrize("command", ["plan", "score"])
@pytest.mark.parametrize("turns", ["last", "all"])
def test_notes_and_duplicates_of_the_pool(
    tithe: Command, model_dir: Path, tmp_path: Path, command: str, turns: str
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    given = [command, source, "--scorer", "length", "--model", model_dir, "--turns", turns]
    done = tithe.ok(*given, *(["--run-dir", tmp_path / "run"] if command == "score" else []))
    assert f"note: {ENDS}" in done.err
    assert "note: 1 of 4 records: `label` is false" in done.err
    assert "exact duplicates: 2 of 4 examples repeat an earlier one; `tithe select --drop-duplicates`" in done.err
    if command == "score":
        counts = json.loads((tmp_path / "run" / "run.json").read_text())["counts"]
        assert counts["duplicates"] == 2 and counts["notes"][ENDS.partition(": ")[2]] == 2


def test_duplicates_among_the_kept(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    given = ["select", source, "--scorer", "length", "--model", model_dir, "--keep", 3, "--run-dir", tmp_path / "run"]
    done = tithe.ok(*given, "-o", tmp_path / "kept.jsonl")
    assert "exact duplicates among the kept: 1; `--drop-duplicates` keeps the first of equals" in done.err
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["selection"]
    assert chosen["duplicates"] == {"pool": 2, "kept": 1}
    done = tithe.ok(*given, "--drop-duplicates", "-o", tmp_path / "other.jsonl")
    assert "exact duplicates among the kept: 0" in done.err


def test_what_a_folder_holds_besides_is_named(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", RECORDS)
    (tmp_path / "data" / "notes.txt").write_text("x")
    run = tmp_path / "run"
    done = tithe.ok("score", tmp_path / "data", "--scorer", "length", "--model", model_dir, "--run-dir", run)
    assert "1 file is read; passed over are 1 other kind of file: `notes.txt`" in done.err
    record = json.loads((run / "run.json").read_text())
    assert record["dataset"]["passed_over"] == ["1 other kind of file: `notes.txt`"]
