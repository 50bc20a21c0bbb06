"""RDS+, DEITA and SelectIT through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, read_jsonl, records, write_jsonl
from tests.naive import Naive
from tithe.scorers.deita import QUESTIONS

ALL = "rds,deita,selectit"


def table(run: Path, name: str = "scores") -> list[dict[str, Any]]:
    return pq.read_table(run / f"{name}.parquet").to_pylist()


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    """Five records that are not in `small`, and one that is."""
    return write_jsonl(tmp_path / "targets.jsonl", [*records(65)[60:], records(4)[3]])


# What it does


@pytest.mark.slow
def test_a_plan_counts_what_a_run_reads(
    tithe: Command, small: Path, targets: Path, model_dir: Path, tmp_path: Path
) -> None:
    """60 records: one given pass each and 5 of targets, 2 rated passes for DEITA, 5 for SelectIT."""
    command = (small, "--model", model_dir, "--scorer", f"{ALL},ifd", "--target", targets, "--dtype", "fp32", "--json")
    planned = tithe.ok("plan", *[one for one in command if one not in ("--dtype", "fp32")])
    counts = planned.json["counts"]
    assert counts["passes"] == {"given": 65, "rated": 420, "alone": 60}
    assert planned.json["estimated"] is False and "forward passes, rated" in planned.err
    run = tmp_path / "run"
    done = tithe.ok("score", *command, "--run-dir", run)
    work = done.json["work"]
    assert done.json["counts"]["passes"] == counts["passes"]
    assert done.json["counts"]["forward_tokens"] == counts["forward_tokens"]
    assert work["passes_computed"] >= 545
    again = tithe.ok("score", *command, "--run-dir", run)
    assert again.json["work"]["passes_computed"] == 0
    assert again.json["counts"]["scored"] == dict.fromkeys([*ALL.split(","), "ifd"], 60)


@pytest.mark.slow
def test_what_stands_in_the_tables(tithe: Command, small: Path, targets: Path, model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = tithe.ok("score", small, "-m", model_dir, "-s", ALL, "--target", targets, "--run-dir", run)
    rows, learned = table(run), record_of(run)["learned"]
    more = ["rds_cosine", "rds_target", "deita_complexity", "deita_quality", "deita_mass"]
    more += ["selectit_rating", "selectit_spread", "selectit_mass"]
    assert list(rows[0])[3:14] == [*ALL.split(","), *more]
    for row in rows:
        assert 0 < row["rds"] <= 1 and -1 <= row["rds_cosine"] <= 1 and row["rds_target"] in range(6)
        assert row["deita"] == pytest.approx(row["deita_complexity"] * row["deita_quality"])
        assert 0 < row["deita_mass"] < 1 and 0 <= row["selectit"] <= 5 and row["problem"] is None
    assert sorted(round(60 * row["rds"]) for row in rows) == list(range(1, 61))
    assert rows[3]["rds_cosine"] == 1 and rows[3]["rds_target"] == 5
    assert "note: in the target set themselves, with cosine 1: 1 of 60 records" in done.err
    assert learned["rds"] == {"target_examples": 6, "targets": 6, "records_in_target_set": 1}
    found = table(run, "targets")
    assert [one["row"] for one in found] == list(range(6))
    assert found[5]["nearest"] == rows[3]["id"] and found[5]["cosine"] == 1
    # a random model has its mind elsewhere, and that is said
    for name in ("deita", "selectit"):
        middle = float(np.median([row[f"{name}_mass"] for row in rows]))
        assert middle < 0.5 and learned[name]["median_mass"] == pytest.approx(middle, abs=1e-4)
        assert f"note: {name}: the replies that it reads have a median probability of" in done.err


def test_the_first_taken_are_kept(tithe: Command, small: Path, targets: Path, model_dir: Path, tmp_path: Path) -> None:
    """As many as there are targets: to each the record nearest to it, where these differ."""
    out, run = tmp_path / "kept.jsonl", tmp_path / "kept.tithe"
    tithe.ok("select", small, "-m", model_dir, "-s", "rds", "--target", targets, "--keep", "1", "-o", out)
    rows, (first, *_) = table(run), table(run, "targets")
    (kept,) = read_jsonl(out)
    assert rows[kept["n"]]["id"] == first["nearest"] and rows[kept["n"]]["rds"] == 1


@pytest.mark.slow
def test_pocket_and_the_starter_set(tithe: Command, tmp_path: Path) -> None:
    """Three responses to each prompt, good, mediocre and damaged: complexity is the prompt's alone."""
    run = tmp_path / "run"
    score = ("score", "starter", "--limit", 40, "-m", "pocket", "--dtype", "fp32", "--run-dir", run)
    tithe.ok(*score, "-s", ALL, "--target", "starter")
    rows = table(run)
    for first in range(0, 39, 3):
        three = [row["deita_complexity"] for row in rows[first : first + 3]]
        assert three == pytest.approx([three[0]] * 3, rel=1e-5)
        assert len({row["deita_quality"] for row in rows[first : first + 3]}) == 3
    assert all(row["rds_cosine"] == 1 for row in rows)  # each is its own target
    assert record_of(run)["learned"]["rds"]["records_in_target_set"] == 40


def test_the_scorer_models_own_prompt_in_a_bare_template(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    """As documented: nothing but BOS, the question and the digit; the numbers are those of the plain text."""
    bare, run = tmp_path / "bare.jinja", tmp_path / "run"
    bare.write_text("{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}")
    score = ("score", small, "--limit", 5, "-m", model_dir, "--dtype", "fp32", "--template", bare, "--run-dir", run)
    tithe.ok(*score, "-s", "deita")
    naive = Naive(model_dir)
    for row, record in zip(table(run), records(5), strict=True):
        query = f"{record['instruction']}\n{record['input']}" if record["input"] else record["instruction"]
        rated = []
        for question in QUESTIONS.values():
            found = naive.replies(question.format(query=query, answer=record["output"]), "123456")
            rated.append(sum(k * p for k, p in enumerate(found, start=1)) / sum(found))
        assert row["deita"] == pytest.approx(rated[0] * rated[1], rel=1e-5)


@pytest.mark.slow
def test_two_scorer_models(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """The table of a run with one model is a factor in a run with the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    tithe.ok("score", small, "-m", model_dir, "-s", "deita(part=complexity)", "--run-dir", one)
    (given,) = {row["turn"] for row in table(one, "complexity")}
    assert given == 0
    spec = f"deita(complexity={one / 'complexity.parquet'})"
    done = tithe.ok("score", small, "-m", "pocket", "-s", spec, "--run-dir", two, "--json")
    assert done.json["counts"]["passes"] == {"rated": 60}
    for first, second in zip(table(one), table(two), strict=True):
        assert second["deita"] == pytest.approx(first["deita"] * second["deita_quality"])
        assert second["deita_complexity"] == first["deita"] and first["deita_quality"] is None


# What cannot be


@pytest.mark.slow
def test_a_question_that_is_too_long(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """It is not cut: that would be another question."""
    run = tmp_path / "run"
    score = ("score", small, "-m", model_dir, "-s", "selectit,ifd", "--max-length", 230, "--run-dir", run)
    tithe.ok(*score, "--template", "plain")
    rows = table(run)
    why = [row["problem"] for row in rows if row["selectit"] is None]
    assert 0 < len(why) < 60
    assert all(one.startswith("selectit: the question about it is longer than max length: ") for one in why)
    assert all(row["ifd"] is not None for row in rows)
    planned = tithe.ok("plan", small, "-m", model_dir, "-s", "selectit", "--max-length", 230, "--template", "plain")
    assert "problem: the question about it is longer than max length" in planned.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "rds"], "`rds` needs a target set to compare records with"),
        (["-s", "rds", "--target", "none.jsonl"], "the target cannot be used: no file or folder `none.jsonl`"),
        (
            ["-s", "rds(by=least)", "--target", "starter"],
            "`by` is `round-robin` or `max` or `mean`, not `least`",
        ),
        (["-s", "ifd", "--target", "starter"], "`target` is given, and nothing reads it: not `ifd`"),
        (["-s", "deita(part=all)"], "`deita`: `part` is `both` or `complexity` or `quality`, not `all`"),
        (["-s", "deita(complexity=none.parquet)"], "the table `none.parquet` cannot be read: there is no such file"),
        (["-s", "selectit(alpha=-1)"], "`alpha` must be at least 0, not -1"),
        (["-s", "ifd(same_tokens=false),selectit", "--preset", "cherry"], "preset `cherry` has no `rated` passes"),
        (["-s", "ifd(same_tokens=false),deita", "--preset", "cherry"], "preset `cherry` has no `rated` passes"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "score"])
def test_one_sentence(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, command: str, arguments: list[str], message: str
) -> None:
    place = [] if command == "plan" else ["--run-dir", tmp_path / "run"]
    if command == "plan" and "nothing reads it" in message:
        return  # a plan passes over what it does not need
    assert message in tithe.fails(command, small, "--model", model_dir, *place, *arguments).err
    assert not (tmp_path / "run").exists() or "target" in message  # which is read when its folder is open


def test_targets_that_are_none(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    score = ("score", small, "-m", model_dir, "-s", "rds", "--run-dir", tmp_path / "run", "--target")
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"instruction": "Red", "output": ""}] * 3)
    assert "no record of the target" in tithe.fails(*score, empty).err
    nothing = write_jsonl(tmp_path / "nothing.jsonl", [])
    assert "the target cannot be used" in tithe.fails(*score, nothing).err
    long = write_jsonl(tmp_path / "long.jsonl", [{"instruction": "red " * 90, "output": "Red."}])
    failed = tithe.fails(*score, long, "--max-length", 64)
    assert "none of the 1 records of the target" in failed.err


def test_a_tokenizer_that_knows_no_digits(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    odd = Path(shutil.copytree(model_dir, tmp_path / "odd"))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "green": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", model_max_length=512).save_pretrained(odd)
    (odd / "chat_template.jinja").unlink()
    failed = tithe.fails("plan", small, "-m", odd, "-s", "selectit")
    assert "the replies `1`, `2`, `3`, `4`, `5` must differ in one token" in failed.err and "`[UNK]`" in failed.err


def test_what_only_rated_scorers_read_is_counted_once(tithe: Command, tmp_path: Path) -> None:
    """A question that is too long is one problem; of a response that nobody reads nothing is cut."""
    rows = [*records(6), {"instruction": "a " * 3000, "output": "b"}, {"instruction": "a", "output": "b " * 3000}]
    data = write_jsonl(tmp_path / "long.jsonl", [*rows, {"instruction": "a", "output": ""}])
    done = tithe.ok("score", data, "--scorer", "selectit", "--model", "pocket", "-o", tmp_path / "s.parquet", "--json")
    counts = done.json["counts"]
    assert counts["problems"] == {"the question about it is longer than max length": 2}
    assert counts["truncated_responses"] == 0 and "cut at max length" not in done.err
    assert counts["scored"] == {"selectit": 6} and counts["without_score"] == {"selectit": 2}
    assert counts["examples"] == 8
