"""What `select` and `score` write, and that the numbers in it agree."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, read_jsonl, records, write_jsonl

pytestmark = pytest.mark.slow

COLUMNS = {
    "id": pa.string(),
    "row": pa.int64(),
    "turn": pa.int32(),
    "ifd": pa.float64(),
    "length": pa.float64(),
    "nll_given": pa.float64(),
    "nll_alone": pa.float64(),
    "response_tokens": pa.int32(),
    "prompt_tokens": pa.int32(),
    "nll_shown": pa.float64(),
    "truncated": pa.int32(),
    "shot_tokens_cut": pa.int32(),
    "problem": pa.string(),
}


def messages(n: int) -> list[dict[str, object]]:
    turns = [("user", "Name a colour."), ("assistant", "Red."), ("user", "Another?"), ("assistant", "Green and blue.")]
    return [
        {"messages": [{"role": role, "content": f"{text} {i}" if role == "user" else text} for role, text in turns]}
        for i in range(n)
    ]


def test_files_of_a_selection(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    done = tithe.ok("select", small, "--model", model_dir, "--scorer", "ifd,length", "--keep", 6, "-o", kept)
    assert done.out == ""
    folder = tmp_path / "kept.tithe"
    lines = small.read_bytes().splitlines()
    chosen = kept.read_bytes().splitlines()
    places = [lines.index(line) for line in chosen]
    assert places == sorted(places) and len(chosen) == 6  # the input's bytes in the input's order

    table = pq.read_table(folder / "scores.parquet")
    assert {f.name: f.type for f in table.schema} == {**COLUMNS, "dropped": pa.string()}
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(60))
    assert [i for i, row in enumerate(rows) if row["dropped"] is None] == places
    for row in rows:
        assert row["ifd"] == pytest.approx(row["nll_given"] / row["nll_alone"], rel=1e-12)
        assert row["length"] == row["response_tokens"]

    dropped = read_jsonl(folder / "dropped.jsonl")
    assert [record["n"] for record in dropped] == [i for i in range(60) if i not in places]
    assert [record.pop("tithe_reason") for record in dropped] == [row["dropped"] for row in rows if row["dropped"]]
    for record in dropped:
        row = rows[record["n"]]
        for name in ("ifd", "length"):
            assert record.pop(f"tithe_score_{name}") == row[name]
            higher = sum(other[name] > row[name] for other in rows)
            assert record.pop(f"tithe_rank_{name}") == 1 + higher
    assert dropped == [json.loads(line) for i, line in enumerate(lines) if i not in places]

    record = json.loads((folder / "run.json").read_text())
    selection = record["selection"]
    assert selection["kept"] == 6 and selection["kept"] + sum(selection["dropped"].values()) == selection["examples"]
    assert selection["filters"] == ["ifd > 1"]
    assert record["counts"]["records"] == record["counts"]["examples"] == 60
    assert record["work"]["passes_computed"] == sum(record["counts"]["passes"].values())
    assert record["work"]["passes_reused"] == 0
    best = sorted((row["ifd"] for row in rows if row["ifd"] <= 1), reverse=True)[:6]
    assert sorted((rows[i]["ifd"] for i in places), reverse=True) == best


def test_bad_rows_are_set_aside_and_counted(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    good = [json.dumps(record) for record in records(12)]
    lines = [*good[:4], '{"instruction": "a", "output": ', *good[4:8], '{"instruction": "Say", "output": " "}', "[]"]
    data.write_text("\n".join([*lines, *good[8:]]) + "\n")
    tithe.ok("select", data, "--model", model_dir, "--keep", "50%", "--no-drop", "-o", tmp_path / "kept.jsonl")
    record = json.loads((tmp_path / "kept.tithe" / "run.json").read_text())
    counts = record["counts"]
    assert (counts["records"], counts["examples"], sum(counts["bad_rows"].values())) == (15, 12, 3)
    rows = pq.read_table(tmp_path / "kept.tithe" / "scores.parquet").to_pylist()
    bad = {row["row"]: row for row in rows if row["id"] is None}
    assert sorted(bad) == [4, 9, 10]
    assert all(row["problem"] and row["ifd"] is None and row["dropped"] == row["problem"] for row in bad.values())
    dropped = read_jsonl(tmp_path / "kept.tithe" / "dropped.jsonl")
    assert len(dropped) == 15 - 6 and sum("tithe_raw" in record for record in dropped) == 2
    assert all(record["tithe_reason"] for record in dropped)
    failed = tithe.fails("select", data, "--model", model_dir, "--strict", "-o", tmp_path / "strict.jsonl")
    assert "data.jsonl:5" in failed.err and not (tmp_path / "strict.jsonl").exists()


def test_everything_kept_leaves_an_empty_dropped_file(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    tithe.ok("select", small, "--scorer", "random", "--model", model_dir, "--keep", "100%", "-o", tmp_path / "k.jsonl")
    assert (tmp_path / "k.jsonl").read_bytes() == small.read_bytes()
    assert (tmp_path / "k.tithe" / "dropped.jsonl").read_bytes() == b""


def test_all_turns_are_examples_of_their_record(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chat.jsonl", messages(10))
    arguments = ("select", data, "--model", model_dir, "--turns", "all", "--no-drop", "--keep", 7)
    done = tithe.ok(*arguments, "-o", tmp_path / "k.jsonl", "--json")
    rows = pq.read_table(tmp_path / "k.tithe" / "scores.parquet").to_pylist()
    assert [(row["row"], row["turn"]) for row in rows] == [(i, turn) for i in range(10) for turn in (1, 3)]
    assert len({row["id"] for row in rows}) == 20
    kept = sorted({row["row"] for row in rows if row["dropped"] is None})
    lines = data.read_bytes().splitlines()
    assert (tmp_path / "k.jsonl").read_bytes().splitlines() == [lines[i] for i in kept]
    selection = done.json["selection"]
    assert (selection["kept"], selection["kept_records"], selection["examples"]) == (7, len(kept), 20)
    dropped = read_jsonl(tmp_path / "k.tithe" / "dropped.jsonl")
    assert len(dropped) == 10 - len(kept)
    assert all(record["tithe_reason"] == ["below the budget"] * 2 for record in dropped)


def test_json_stands_alone_on_stdout(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    done = tithe.ok("score", small, "--model", model_dir, "-o", tmp_path / "s.parquet", "--json")
    assert done.json == json.loads((tmp_path / "s.tithe" / "run.json").read_text())
    assert "60 records" in done.err
    assert tithe.ok("plan", small, "--model", model_dir, "--json").json["counts"]["examples"] == 60
    for listing in ("scorers", "selectors", "templates", "doctor"):
        assert tithe.ok(listing, "--json").json


def test_per_token_sums_to_the_totals(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    tithe.ok("score", small, "--model", model_dir, "--per-token", "--limit", 20, "-o", tmp_path / "s.parquet")
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "s.parquet").to_pylist()}
    tokens = pq.read_table(tmp_path / "s.tithe" / "tokens.parquet").to_pylist()
    assert len(tokens) == 40
    for token in tokens:
        assert len(token["nll"]) == len(token["token_ids"]) == rows[token["id"]]["response_tokens"]
        assert np.mean(token["nll"]) == pytest.approx(rows[token["id"]][f"nll_{token['pass']}"], rel=1e-5)
    tithe.ok("score", small, "--model", model_dir, "--limit", 20, "-o", tmp_path / "s.parquet", "--overwrite")
    assert not (tmp_path / "s.tithe" / "tokens.parquet").exists()  # of another run


@pytest.mark.parametrize("scorers", ["ifd,length", "length,ifd", "ifd,sound(records=20, kinds=shuffled)"])
def test_other_readouts_of_a_pass_leave_its_tokens(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, scorers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tithe.scorers.sound.tells", lambda fit: True)  # the model of the tests can tell nothing
    for number, names in enumerate(("ifd", scorers)):
        scored = ("score", small, "--model", model_dir, "--scorer", names, "--per-token")
        tithe.ok(*scored, "-o", tmp_path / f"{number}.parquet")
    alone, together = (pq.read_table(tmp_path / f"{number}.tithe" / "tokens.parquet").to_pylist() for number in (0, 1))
    assert len(alone) == 120

    def by_pass(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
        return {(row["id"], row["pass"]): row["nll"] for row in rows}

    assert by_pass(together).keys() == by_pass(alone).keys()
    for key, losses in by_pass(alone).items():
        assert by_pass(together)[key] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("name", ["k.json", "k.csv", "k.parquet", "k.jsonl.gz"])
def test_output_in_another_container(tithe: Command, small: Path, model_dir: Path, tmp_path: Path, name: str) -> None:
    select = ("select", small, "--scorer", "length", "--model", model_dir, "-k", 9)
    tithe.ok(*select, "-o", tmp_path / "plain.jsonl")
    tithe.ok(*select, "-o", tmp_path / name)
    expected = read_jsonl(tmp_path / "plain.jsonl")
    if name == "k.json":
        assert json.loads((tmp_path / name).read_text()) == expected
    elif name == "k.parquet":
        assert pq.read_table(tmp_path / name).to_pylist() == expected
    elif name == "k.jsonl.gz":
        assert gzip.decompress((tmp_path / name).read_bytes()) == (tmp_path / "plain.jsonl").read_bytes()
    else:
        lines = (tmp_path / name).read_text().splitlines()
        assert lines[0] == "instruction,input,output,category,n" and len(lines) == 10
    assert (tmp_path / "k.tithe" / "run.json").exists()


@pytest.mark.parametrize("shape", ["messages", "prompt-completion"])
def test_kept_in_another_shape(tithe: Command, small: Path, model_dir: Path, tmp_path: Path, shape: str) -> None:
    kept = tmp_path / "k.jsonl"
    tithe.ok("select", small, "-s", "length", "--model", model_dir, "-k", 3, "--shape", shape, "-o", kept)
    for record in read_jsonl(kept):
        assert ("messages" if shape == "messages" else "completion") in record
        assert record["category"] in ("letters", "sums", "colours")


def test_settings_of_select(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """Filters, ranking, strata, budgets: each against a count made from the score table."""
    select = ("select", small, "--model", model_dir, "--run-dir", tmp_path / "run", "--json")

    def run(*arguments: object) -> tuple[dict[str, int], list[dict[str, object]]]:
        selection = tithe.ok(*select, *arguments).json["selection"]
        rows = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
        assert selection["kept"] == sum(row["dropped"] is None for row in rows)
        assert selection["kept"] + sum(selection["dropped"].values()) == len(rows)
        return selection["dropped"], [row for row in rows if row["dropped"] is None]

    dropped, kept = run("--scorer", "ifd,length", "--by", "length", "--keep", 5)
    lengths = sorted(pq.read_table(tmp_path / "run" / "scores.parquet")["length"].to_pylist(), reverse=True)
    assert sorted((row["length"] for row in kept), reverse=True) == lengths[:5] and "ifd > 1" not in dropped
    dropped, kept = run("--scorer", "length", "--drop", "length > 40", "--drop", "n >= 50", "--keep", "100%")
    assert set(dropped) == {"length > 40", "n >= 50"} and max(row["row"] for row in kept) < 50
    dropped, kept = run("--scorer", "length", "--drop", 'category == "sums"', "--keep", 40)
    assert dropped == {'category == "sums"': 20} and {row["row"] % 3 for row in kept} == {0, 2}
    _, kept = run("--scorer", "length", "--selector", "stratified(by=category)", "--keep", 9)
    assert sorted(row["row"] % 3 for row in kept) == [0] * 3 + [1] * 3 + [2] * 3
    _, kept = run("--scorer", "length", "--keep", "300-tokens")
    assert 200 < sum(row["length"] for row in kept) <= 300
    _, one = run("--scorer", "random", "--seed", 1, "--keep", 6)
    _, two = run("--scorer", "random", "--seed", 2, "--keep", 6)
    _, again = run("--scorer", "random", "--seed", 1, "--keep", 6)
    assert [row["row"] for row in one] == [row["row"] for row in again] != [row["row"] for row in two]
    dropped, kept = run("--scorer", "ifd", "--keep", "50%", "--keep-of", "kept")
    assert len(kept) == (60 - dropped["ifd > 1"]) // 2


def test_duplicates_are_dropped_when_asked_for(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(10) + records(10))
    select = (
        "select",
        data,
        "-s",
        "length",
        "--model",
        model_dir,
        "--run-dir",
        tmp_path / "run",
        "--json",
        "-k",
        "100%",
    )
    assert tithe.ok(*select).json["selection"]["kept"] == 20
    selection = tithe.ok(*select, "--drop-duplicates").json["selection"]
    assert selection["dropped"] == {"exact duplicate": 10} and selection["kept"] == 10


def test_problems_are_counted_together_whatever_their_numbers(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    long = [{"instruction": "red green " * n, "output": "blue"} for n in range(60, 70)]
    data = write_jsonl(tmp_path / "data.jsonl", [*long, *records(10)])
    arguments = ("select", data, "--model", model_dir, "--no-drop", "--max-length", 100, "--template", "plain")
    done = tithe.ok(*arguments, "-k", "100%", "-o", tmp_path / "k.jsonl", "--json")
    assert done.json["selection"]["dropped"] == {"no response token left": 10}
    assert "the prompt alone has" in read_jsonl(tmp_path / "k.tithe" / "dropped.jsonl")[0]["tithe_reason"]


def test_nothing_kept_is_an_error_and_writes_no_empty_file(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    arguments = ("select", small, "-s", "length", "--model", model_dir, "--drop", "length > 0")
    failed = tithe.fails(*arguments, "-o", tmp_path / "k.jsonl")
    assert "60 examples" in failed.err and "length > 0" in failed.err
    assert not (tmp_path / "k.jsonl").exists()
    assert len(read_jsonl(tmp_path / "k.tithe" / "dropped.jsonl")) == 60


def test_a_later_score_in_the_folder_leaves_no_file_of_the_selection(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    tithe.ok("select", small, "-s", "length", "--model", model_dir, "--run-dir", folder)
    assert (folder / "dropped.jsonl").exists()
    tithe.ok("score", small, "-s", "length", "--model", model_dir, "--run-dir", folder)
    assert not (folder / "dropped.jsonl").exists()
    assert "dropped" not in pq.read_table(folder / "scores.parquet").column_names


def test_the_run_record_repeats_the_run(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    first = ("select", small, "--model", model_dir, "--selector", "stratified(by=category)", "--keep", "20%")
    record = tithe.ok(*first, "--drop", "length < 5", "-s", "ifd,length", "-o", tmp_path / "a.jsonl", "--json").json
    config = tmp_path / "again.yaml"
    config.write_text(json.dumps(record["settings"]))
    again = tithe.ok("select", "--config", config, "-o", tmp_path / "b.jsonl", "--json").json
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    for key in ("settings", "dataset", "scorers", "template", "model", "counts", "selection", "versions"):
        assert again[key] == record[key]
    assert Path(record["dataset"]["path"]).is_absolute() and record["model"]["fingerprint"]


def test_columns_of_the_input_with_names_of_ours(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    """`id`, `row` and `problem` of the input can be filtered by; a part of the dialogue is no column."""
    made = [record | {"id": f"x{i}", "row": i % 2, "problem": "yes"} for i, record in enumerate(records(10))]
    data = write_jsonl(tmp_path / "data.jsonl", made)
    select = ("select", data, "-s", "length", "--model", model_dir, "-k", "100%", "--run-dir", tmp_path / "run")
    dropped = tithe.ok(*select, "--drop", 'id == "x3"', "--drop", "row == 0", "--json").json["selection"]["dropped"]
    assert dropped == {"row == 0": 5, 'id == "x3"': 1}
    assert "`output`" in tithe.fails(*select, "--drop", 'output == ""').err
    assert "`output`" in tithe.fails(*select, "--selector", "stratified(by=output)").err


def test_filters_of_ones_own_replace_the_scorers_and_it_is_said(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    select = ("select", small, "--model", model_dir, "--run-dir", tmp_path / "run")
    note = "note: these filters replace ifd's default filter, `ifd > 1`"
    assert note in tithe.ok(*select, "--drop", "response_tokens < 5").err
    for arguments in (["--drop", "ifd > 1.2"], ["--no-drop"], []):
        assert "note: these" not in tithe.ok(*select, *arguments).err


def test_one_yaml_file_serves_all_commands(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(f"dataset: {small}\nmodel: {model_dir}\nscorer: length\nkeep: 7\ndrop: [n > 50]\n")
    assert tithe.ok("plan", "-c", config, "--json").json["counts"]["examples"] == 60
    tithe.ok("score", "-c", config, "-o", tmp_path / "s.parquet")
    done = tithe.ok("select", "-c", config, "-o", tmp_path / "k.jsonl", "--limit", 20, "--json").json
    assert done["selection"]["kept"] == 7 and done["selection"]["filters"] == ["n > 50"]
