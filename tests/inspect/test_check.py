"""`tithe check`: what is planted is counted, shown, compared with limits, and never markup."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import tithe as library
from tests.e2e.command import Command, records, write_jsonl
from tithe.errors import MissingExtraError, SettingsError
from tithe.inspect.languages import find_detector

LONG = "A farmer has seventeen sheep and all but nine of them run away in the night how many are left"
HOSTILE = "<script>alert(1)</script> | `x` **b** [a](javascript:alert(1)) \x1b[31m & ]]> "


@pytest.fixture
def tithe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 records: 2 equal, 2 nearly equal and contaminated, 2 empty, 1 other bad row, 1 in another language."""
    rows: list[Any] = records(40)
    rows[5] = {**rows[5], "instruction": HOSTILE * 2, "output": HOSTILE * 3}
    rows[6] = dict(rows[5])
    rows[8] |= {"instruction": LONG.upper(), "input": "", "output": "Nine sheep are left, as nine did not run away."}
    rows[9] |= {"instruction": LONG, "input": "", "output": "nine sheep are left - as nine did not run away!"}
    rows[11] |= {"output": ""}
    rows[12] |= {"output": "  \n"}
    rows[13] = {"instruction": 7, "output": "x"}
    french = "Le chat dort sur le tapis devant la porte de la maison, et la pluie tombe depuis ce matin."
    rows[14] |= {"instruction": "Écrivez une phrase sur le chat, s'il vous plaît.", "input": "", "output": french}
    return write_jsonl(tmp_path / "data.jsonl", rows)


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "exam.jsonl", [{"question": f"{LONG}?", "answer": "nine"}])


def counts(record: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (one["count"], one["of"]) for name, one in record["rates"].items()}


def test_what_is_planted_is_counted(data: Path, exam: Path) -> None:
    result = library.check(data, contamination=str(exam), max_length=300)
    found = counts(result.record)
    assert found["bad"] == (3, 40) and found["empty"] == (2, 40) and found["duplicates"] == (1, 37)
    assert found["near_duplicates"] == (1, 37) and found["contaminated"] == (2, 37) and found["noted"] == (0, 40)
    lengths = [
        sum(len(m.content) for m in (*one.prompt, one.response)) for one in library.load(data) if hasattr(one, "prompt")
    ]
    assert found["truncated"] == (sum(n > 300 for n in lengths), 37) and 0 < found["truncated"][0] < 37
    bad = {one["reason"]: one for one in result.record["bad_rows"]}
    assert bad["the response is empty"]["at"] == [f"{data}:12", f"{data}:13"]
    (group,) = result.record["duplicates"]["largest"]
    assert (group["examples"], group["at"], group["also_at"]) == (2, f"{data}:6", [f"{data}:7"])
    (near,) = result.record["near_duplicates"]["largest"]
    assert near["at"] == f"{data}:9" and [(one["at"], one["similarity"]) for one in near["like"]] == [
        (f"{data}:10", 1.0)
    ]
    assert result.record["roles"] == {"user": 37, "assistant": 37}
    assert result.record["assistant_turns"] == {"1": 37}
    assert result.ok and result.failures == [] and "bad 7.5 %" in repr(result)
    json.dumps(result.record, allow_nan=False)


def test_lengths_are_quantiles(tmp_path: Path) -> None:
    rows = [{"instruction": "a" * (i + 1), "output": "b" * (10 * (i + 1))} for i in range(5)]
    found = library.check(write_jsonl(tmp_path / "d.jsonl", rows)).record["lengths"]
    assert [(one["what"], one["min"], one["median"], one["max"]) for one in found] == [
        ("prompt", 1, 3, 5),
        ("response", 10, 30, 50),
    ]
    assert found[0]["25 %"] == 2 and found[0]["75 %"] == 4


def test_dialogues(tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi"), ("user", "And?"), ("assistant", "So.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    one = {"messages": row["messages"][1:3]}
    record = library.check(write_jsonl(tmp_path / "d.jsonl", [row, one])).record
    assert record["roles"] == {"user": 3, "assistant": 3, "system": 1} and record["roles_as_written"] == record["roles"]
    assert record["assistant_turns"] == {"1": 1, "2": 1}
    assert record["examples_with"] == {"system message": 1, "several turns": 1}
    every = library.check(tmp_path / "d.jsonl", turns="all").record
    assert every["counts"]["examples"] == 3 and every["counts"]["records"] == 2


@pytest.mark.slow
def test_truncation_in_tokens_is_that_of_a_plan(data: Path) -> None:
    given = {"model": "pocket", "template": "alpaca", "max_length": 90}
    record = library.check(data, **given).record
    plan = library.plan(data, scorer="length", **given).record["counts"]
    cut = record["truncation"]
    assert cut["responses_cut"] == plan["truncated_responses"] > 0 and cut["unit"] == "tokens"
    assert cut["left_out"] == sum(plan["problems"].values())
    assert record["rates"]["truncated"]["count"] == cut["responses_cut"] + cut["prompts_cut"] + cut["left_out"]
    assert [one["unit"] for one in record["lengths"]] == ["characters"] * 2 + ["tokens"] * 2


def test_other_languages_are_counted(data: Path) -> None:
    record = library.check(data).record
    languages = record["languages"]
    if languages["kind"] == "language":
        assert languages["examples"]["fr"] == 1
    total = sum(languages["examples"].values())
    assert total == 37 and record["rates"]["other_language"]["of"] == 37


def test_without_a_detector_scripts_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    detector = find_detector()
    assert detector.kind == "script" and detector.hint is not None and "check" in detector.hint
    rows = [{"instruction": "Say hello", "output": "Hello to you"}] * 2 + [{"instruction": "Привет", "output": "Мир"}]
    record = library.check(write_jsonl(tmp_path / "d.jsonl", rows)).record
    assert record["languages"]["examples"] == {"latin": 2, "cyrillic": 1}
    assert record["rates"]["other_language"]["count"] == 1


def test_without_the_extra_near_duplicates_are_not_looked_for(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    record = library.check(data).record
    assert "near_duplicates" not in record["rates"] and "datasketch" in record["skipped"]["near_duplicates"]
    for asked in ({"near_duplicates": 0.9}, {"max_near_duplicates": 0}):
        with pytest.raises(MissingExtraError, match="datasketch"):
            library.check(data, **asked)


def test_limits_fail_with_a_sentence(tithe: Command, data: Path, exam: Path) -> None:
    tithe.ok("check", data, "--max-bad", 3, "--max-duplicates", "5%")
    failed = tithe.fails("check", data, "--max-bad", "0", "--max-duplicates", "1%", "--max-noted", "0")
    assert "bad rows: 3 of 40 records (7.5 %), and at most 0 may be" in failed.err
    assert "exact duplicates: 1 of 37 examples (2.7 %), and at most 1 % may be" in failed.err
    assert "records with a note" not in failed.errors[0]
    assert "contaminated: 2 of 37" in tithe.fails("check", data, "--contamination", exam, "--max-contaminated", 0).err


def test_a_baseline_fails_what_grew(tithe: Command, data: Path, tmp_path: Path) -> None:
    clean = write_jsonl(tmp_path / "clean.jsonl", records(40))
    tithe.ok("check", clean, "-o", tmp_path / "before.json")
    failed = tithe.fails("check", data, "--baseline", tmp_path / "before.json")
    assert "bad rows: grew from 0 % to 7.5 % of the records, by more than 0.5 points" in failed.err
    passed = tithe.ok("check", data, "--baseline", tmp_path / "before.json", "--tolerance", "20%", "--json")
    assert passed.json["baseline"]["rates"]["bad"] == {"before": 0.0, "now": 0.075}
    # What `--json` prints is a baseline, too.
    (tmp_path / "printed.json").write_text(passed.out)
    tithe.ok("check", data, "--baseline", tmp_path / "printed.json", "--tolerance", "0%")
    other = tithe.ok("check", clean, "--baseline", tmp_path / "printed.json", "--near-duplicates", "0.9")
    assert "not compared with the baseline: near-duplicates: measured in another way" in other.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-truncated", "0"], "no length is given"),
        (["--max-contaminated", "0"], "no evaluation file is given"),
        (["--max-near-duplicates", "0", "--near-duplicates", "0"], "looks for none"),
        (["--max-bad", "some"], "`max_bad` cannot be `some`"),
        (["--max-bad", "101%"], "`max_bad` cannot be"),
        (["--near-duplicates", "0.2"], "`near_duplicates` cannot be"),
        (["--tolerance", "1%"], "no baseline"),
        (["--baseline", "nowhere.json"], "nowhere.json"),
        (["--contamination", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "nowhere-model"], "nowhere-model"),
        (["-o", "report.pdf"], "`report.pdf`"),
    ],
)
def test_wrong_options_are_one_sentence(tithe: Command, data: Path, options: list[str], said: str) -> None:
    failed = tithe.fails("check", data, *options)
    assert said in failed.err and failed.out == ""


def test_wrong_files_and_outputs(tithe: Command, data: Path, tmp_path: Path) -> None:
    assert "no file or folder" in tithe.fails("check", tmp_path / "none.jsonl").err
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in tithe.fails("check", tmp_path / "empty.jsonl").err
    page = tmp_path / "check.html"
    tithe.ok("check", data, "-o", page)
    assert "exists" in tithe.fails("check", data, "-o", page).err
    tithe.ok("check", data, "-o", page, "--overwrite")
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    assert "is the data set itself" in tithe.fails("check", copy, "-o", copy, "--overwrite").err
    assert "both print" in tithe.fails("check", data, "--json", "--markdown", code=2).err
    with pytest.raises(SettingsError, match="unknown setting"):
        library.check(data, max_bed=0)


def test_a_data_set_of_bad_rows_alone(tithe: Command, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"instruction": "a", "output": ""}] * 3)
    done = tithe.ok("check", data, "--markdown", "-o", tmp_path / "c.html")
    assert "bad rows" in done.err and "the response is empty" in done.out
    tithe.fails("check", data, "--max-empty", "0")


def test_nothing_that_the_data_says_is_markup(tithe: Command, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "check.html"
    done = tithe.ok("check", data, "-o", page, "--markdown")
    text = page.read_text()
    assert "default-src 'none'" in text and "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)\s*=", text.replace("&#34;", ""))
    assert "\x1b" not in done.out and "\x1b" not in done.err
    assert "<script" not in done.out and "\\`x\\`" in done.out and "\\[a\\]" in done.out
    tables = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables if "script" in line}) == 1


def test_the_same_twice(tithe: Command, data: Path) -> None:
    first, second = (tithe.ok("check", data, "--json").json for _ in range(2))
    for record in (first, second):
        record.pop("seconds")
    assert first == second


def test_the_terminal_shows_one_screen(tithe: Command, data: Path, exam: Path) -> None:
    done = tithe.ok("check", data, "--contamination", exam, "--max-length", "300")
    assert len(done.err.splitlines()) <= 40
    for said in ("bad rows", "exact duplicates: ", "near-duplicates: ", "truncated at 300 characters", "exam.jsonl: "):
        assert said in done.err
