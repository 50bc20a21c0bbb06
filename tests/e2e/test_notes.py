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
    assert "1 file is read; skipped: 1 other kind of file: `notes.txt`" in done.err
    record = json.loads((run / "run.json").read_text())
    assert record["dataset"]["passed_over"] == ["1 other kind of file: `notes.txt`"]


ODD = [
    dialogue(("user", "Name a river."), ("assistant", "The Rhine."), ("user", "thanks"), tier="high"),
    dialogue(("user", "Name a lake."), ("assistant", "Lake one."), system_prompt="Be brief.", tier="low"),
    dialogue(("user", "Name a hill."), ("assistant", "Hill one."), label=False, tier="low"),
    dialogue(("user", "Name a town."), ("assistant", ""), tier="low"),
]
BESIDE = "`system_prompt` is not read: it is no part of the dialogue"
ENDED = "the dialogue ends with a turn of the user after the last response: an earlier turn is "
LABEL = "`label` is false, which marks an undesirable response in preference data (KTO): it is "


def notes_of(found: Any) -> dict[str, int]:
    """The first `notes` in a record, wherever they are."""
    if isinstance(found, dict):
        if isinstance(found.get("notes"), dict):
            return dict(found["notes"])
        found = [*found.values()]
    return next((notes for one in found if (notes := notes_of(one))), {}) if isinstance(found, list) else {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "deed", "account", "learns"),
    [
        (["contamination", "IN", "--against", "EVAL", "-o", "OUT/r.json"], "looked at", "r.json", False),
        (["tiers", "import", "IN", "-o", "OUT/t.jsonl"], "taken", "t.tithe/run.json", True),
        (["tiers", "import", "--high-file", "IN", "--low-file", "EVAL", "-o", "OUT/t.jsonl"], "taken", None, True),
        (["export", "IN", "--to", "alpaca", "-o", "OUT/e.jsonl"], "taken", None, True),
        (["tune", "IN", "-m", "MODEL", "--max-steps", "2", "-o", "OUT/m"], "trained on", "m/tune.json", True),
        (["evaluate", "MODEL", "--holdout", "IN", "-o", "OUT/ev"], "scored", "ev/evaluation.json", True),
        (
            ["judge", "answer", "IN", "-m", "MODEL", "--max-new-tokens", "2", "-o", "OUT/a.jsonl"],
            None,
            "a.tithe/run.json",
            False,
        ),
    ],
)
def test_every_command_counts_what_concerns_it_and_says_so_once(
    tithe: Command,
    model_dir: Path,
    tmp_path: Path,
    command: list[str],
    deed: str | None,
    account: str | None,
    learns: bool,
) -> None:
    names = {"IN": write_jsonl(tmp_path / "in.jsonl", ODD), "MODEL": model_dir, "OUT": tmp_path}
    names["EVAL"] = write_jsonl(tmp_path / "eval.jsonl", [dialogue(("user", "Who?"), ("assistant", "Nobody."))])
    done = tithe.ok(*(names.get(part, part.replace("OUT", str(tmp_path))) for part in command))
    named = f" of `{names['IN']}`" if "--high-file" in command else ""
    expected = {BESIDE: 1}
    expected |= {f"{ENDED}{deed}": 1} if deed else {}
    expected |= {f"{LABEL}{deed} all the same; `select --drop 'label == 0'` leaves it out": 1} if learns else {}
    for text in expected:
        assert done.err.count(f"note: 1 of 4 records{named}: {text}\n") == 1, done.err
    assert done.err.count("of 4 records") == len(expected)
    if account is not None:
        assert notes_of(json.loads((tmp_path / account).read_text())) == expected


def test_an_experiment_counts_both_sides(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    from tests.e2e.test_experiment import rows, write

    path = write(tmp_path, model_dir)
    odd = [row | ({"system_prompt": "Be brief."} if i % 2 else {}) for i, row in enumerate(rows())]
    write_jsonl(tmp_path / "data.jsonl", [*odd, {"instruction": "x", "output": ""}])
    done = tithe.ok("experiment", path, "-o", tmp_path / "out", "--plan", "--json")
    counts = done.json["data"]["counts"]
    pool, held = (counts[side]["notes"][BESIDE] for side in ("pool", "held_out"))
    assert pool + held == 30 and counts["pool"]["bad_rows"] == {"the response is empty": 1}
    assert f"note: {pool} of 41 records of the pool: {BESIDE}" in done.err
    assert f"note: {held} of 20 records of the held-out set: {BESIDE}" in done.err
    assert "bad rows set aside, 1: the response is empty" in done.err
