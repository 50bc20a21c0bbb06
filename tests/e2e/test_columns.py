"""`--columns`, `--with-scores`, and what a plan says of time and template, as typed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, read_jsonl, records, write_jsonl
from tithe.look.finished_run import FinishedRun

NAMED = "prompt=question,response=answer"


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    rows = [{"n": i, "question": one["instruction"], "answer": one["output"]} for i, one in enumerate(records(20))]
    return write_jsonl(tmp_path / "qa.jsonl", rows)


def test_a_selection_by_named_columns(tithe: Command, renamed: Path, model_dir: Path, tmp_path: Path) -> None:
    usual = [{"prompt": one["question"], "completion": one["answer"]} for one in read_jsonl(renamed)]
    write_jsonl(tmp_path / "usual.jsonl", usual)
    given = ("--model", model_dir, "--keep", 5, "--no-drop")
    done = tithe.ok("select", renamed, *given, "--columns", NAMED, "-o", tmp_path / "k.jsonl", "--json")
    tithe.ok("select", tmp_path / "usual.jsonl", *given, "-o", tmp_path / "u.jsonl")
    ours, theirs = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("k.tithe", "u.tithe"))
    assert ours.equals(theirs)
    lines = renamed.read_bytes().splitlines()
    kept = [i for i, why in enumerate(ours["dropped"].to_pylist()) if why is None]
    assert (tmp_path / "k.jsonl").read_bytes().splitlines() == [lines[i] for i in kept] and len(kept) == 5
    assert done.json["settings"]["columns"] == ["prompt=question", "response=answer"]
    assert done.json["dataset"]["columns"] == {"prompt": "question", "response": "answer"}
    # Another command reads the data again, from the run's record alone.
    found = [one.response.content for one in FinishedRun.open(tmp_path / "k.tithe").source.dataset]  # type: ignore[union-attr]
    assert found == [one["answer"] for one in read_jsonl(renamed)]
    again = tithe.ok("select", renamed, *given, "--columns", NAMED, "-o", tmp_path / "k.jsonl", "--overwrite", "--json")
    assert again.json["work"]["passes_computed"] == 0


def test_yaml_names_columns_as_a_mapping(tithe: Command, renamed: Path, model_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("columns:\n  prompt: question\n  response: answer\nscorer: length\n")
    done = tithe.ok("score", renamed, "-c", config, "--model", model_dir, "--run-dir", tmp_path / "r", "--json")
    assert done.json["counts"]["examples"] == 20
    config.write_text("columns:\n  promt: question\n")
    failed = tithe.fails("score", renamed, "-c", config, "--model", model_dir, "--run-dir", tmp_path / "r")
    assert "did you mean `prompt`?" in failed.err


def test_scores_beside_kept_records_in_every_container(
    tithe: Command, renamed: Path, model_dir: Path, tmp_path: Path
) -> None:
    given = ("--scorer", "length", "--model", model_dir, "--columns", NAMED, "--keep", 3, "--with-scores")
    pq.write_table(pa.Table.from_pylist(read_jsonl(renamed)), tmp_path / "qa.parquet")
    tithe.ok("select", renamed, *given, "-o", tmp_path / "k.jsonl")
    tithe.ok("select", renamed, *given, "-o", tmp_path / "k.csv")
    tithe.ok("select", tmp_path / "qa.parquet", *given, "-o", tmp_path / "k.parquet")
    tithe.ok("select", renamed, *given, "--shape", "messages", "-o", tmp_path / "m.jsonl")
    lines = read_jsonl(tmp_path / "k.jsonl")
    by_n = {row["n"]: (row["tithe_score_length"], row["tithe_rank_length"]) for row in lines}
    assert min(rank for _, rank in by_n.values()) == 1
    assert len(by_n) == 3 and all(1 <= rank <= 3 for _, rank in by_n.values())
    with (tmp_path / "k.csv").open(newline="") as stream:
        cells = {
            int(row["n"]): (float(row["tithe_score_length"]), int(row["tithe_rank_length"]))
            for row in csv.DictReader(stream)
        }
    table = pq.read_table(tmp_path / "k.parquet")
    assert table.schema.field("tithe_rank_length").type == pa.int64()
    columns = zip(*(table[name].to_pylist() for name in ("n", "tithe_score_length", "tithe_rank_length")), strict=True)
    assert cells == by_n == {n: (score, rank) for n, score, rank in columns}
    made = {row["n"]: (row["tithe_score_length"], row["tithe_rank_length"]) for row in read_jsonl(tmp_path / "m.jsonl")}
    assert made == by_n


def test_a_plan_says_time_template_and_example(tithe: Command, renamed: Path, model_dir: Path, tmp_path: Path) -> None:
    given = ("plan", renamed, "--model", model_dir, "--columns", NAMED)
    done = tithe.ok(*given, "--json")
    assert "template: chat, max length" in done.err and "time: about " in done.err and "--no-time" in done.err
    time, example = done.json["time"], done.json["example"]
    assert time["seconds"] > 0 and time["sample_records"] > 0 and time["dtype"] in ("float32", "bfloat16")
    first = read_jsonl(renamed)[0]
    assert first["question"] in example["prompt"] and example["response"].startswith(first["answer"][:20])
    quiet = tithe.ok(*given, "--no-time", "--json")
    assert quiet.json["time"] == {} and "time:" not in quiet.err
    none = tithe.ok(*given, "--scorer", "length", "--json")
    assert none.json["time"] == {"not_measured": "length reads no model"}


def test_hostile_text_in_a_plan_is_escaped_and_clipped(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    text = "\x1b[2J\x07 [red]bold[/red] " + "x" * 150 + "\n" * 30 + "end"
    data = write_jsonl(tmp_path / "odd.jsonl", [{"prompt": text, "completion": "fine"}])
    done = tithe.ok("plan", data, "--model", model_dir, "--no-time")
    assert "\x1b" not in done.err and "[red]bold" in done.err and "| ..." in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("    | ")]
    assert max(map(len, lines)) <= 100
    assert json.loads(tithe.ok("plan", data, "--model", model_dir, "--no-time", "--json").out)["example"]["prompt"]
