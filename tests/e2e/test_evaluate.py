"""`tithe evaluate` as a shell has it."""

import json

import pyarrow.parquet as pq
import pytest

QUESTION = {"question": "What is 1 + 1?", "answer": "#### 2"}
EXAMPLE = {"instruction": "Name a colour.", "input": "", "output": "Red is a colour.", "category": "open"}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "held.jsonl").write_text(json.dumps(EXAMPLE) + "\n")
    (tmp_path / "gsm8k.jsonl").write_text(f"{json.dumps(QUESTION)}\n{json.dumps({**QUESTION, 'question': 'And?'})}\n")
    return tmp_path


@pytest.mark.slow
def test_results_are_printed_and_written(tithe, model_dir, files):
    place = files / "out"
    held = ("--holdout", files / "held.jsonl", "--holdout-group", "category", "--template", "alpaca")
    task = ("--tasks", f"gsm8k={files / 'gsm8k.jsonl'}", "--num-fewshot", 0, "--max_new_tokens", 4, "--batch-size", 2)
    done = tithe.ok("evaluate", model_dir, *held, *task, "-o", place, "--json")
    assert done.json["work"]["computed"] == ["holdout", "gsm8k"] and done.json["settings"]["batch_size"] == 2
    assert "none: one item" in done.err and "gsm8k strict-match" in done.err and "lower is better" in done.err
    rows = pq.read_table(place / "items.parquet").to_pylist()
    assert [row["metric"] for row in rows].count("gsm8k flexible-extract") == 2
    assert rows[0]["metric"] == "holdout_nll" and rows[0]["group"] == "open"
    assert "found in the folder: holdout, gsm8k" in tithe.ok("evaluate", model_dir, *held, *task, "-o", place).err
    assert list(place.parent.glob("*.part")) == []


def test_settings_may_come_from_a_file(tithe, model_dir, files):
    lines = {"model": str(model_dir), "holdout": str(files / "held.jsonl"), "template": "alpaca", "eos": True}
    (files / "e.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    done = tithe.ok("evaluate", "--config", files / "e.yaml", "-o", files / "out", "--json")
    assert done.json["settings"]["eos"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--holdout", "held.jsonl"], 2, "no place for the results"),
        (["-o", "out"], 2, "nothing is given to evaluate by"),
        (["--model", "other", "--holdout", "held.jsonl", "-o", "out"], 2, "two models"),
        (["--holdout", "held.jsonl", "--limit", "3", "-o", "out"], 1, "`limit` is given, but no tasks"),
        (["--holdout", "gone.jsonl", "-o", "out"], 1, "gone.jsonl"),
        (["--holdout", "held.jsonl", "--holdout-group", "categroy", "-o", "out"], 1, "did you mean `category`?"),
        (["--tasks", "humaneval", "-o", "out"], 1, "--allow-code-execution"),
        (["--tasks", "gsm8k=gsm8k.jsonl", "-o", "out"], 1, "shows 5 worked examples"),
        (
            ["--tasks", "gsm8k=held.jsonl", "--num-fewshot", "0", "-o", "out"],
            1,
            "held.jsonl:1: the record has no field",
        ),
        (["--tasks", "gsm8k", "--batch-size", "many", "-o", "out"], 1, "`batch_size` cannot be `many`"),
    ],
)
def test_what_cannot_be_is_one_sentence(tithe, model_dir, files, monkeypatch, arguments, code, words):
    monkeypatch.chdir(files)
    done = tithe("evaluate", model_dir, *arguments)
    assert done.code == code and words in done.err and len(done.errors) == 1, done.err
    account = files / "out" / "evaluation.json"  # there where the work had begun
    assert not account.exists() or words in json.loads(account.read_text())["outcome"]["error"]
