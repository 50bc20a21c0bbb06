"""The folder of card and records: `datasets` opens it, and nothing in a name or a reason breaks the card."""

from __future__ import annotations

import json

import datasets
import pytest
import yaml

from tests.e2e.command import Command, read_jsonl, records, write_jsonl
from tests.publish.conftest import HOSTILE, read_front
from tithe.errors import SettingsError
from tithe.publish.card import CardFacts, check_license, size_category, write_card
from tithe.publish.plain_text import code, fenced, without_folders


@pytest.fixture
def load(tmp_path, monkeypatch):
    def opened(path, *more):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        return datasets.load_dataset(str(path), *more, split="train", cache_dir=str(tmp_path / "cache"))

    datasets.disable_progress_bars()
    return opened


def test_load_dataset_opens_the_kept_records_and_nothing_else(tithe: Command, run, tmp_path, load):
    done = tithe.ok("card", run, "-o", tmp_path / "set", "--with-dropped")
    assert "6 kept records, 25 dropped, README.md" in done.err
    assert sorted(one.name for one in (tmp_path / "set" / "data").iterdir()) == ["dropped.jsonl", "kept.jsonl"]
    kept = read_jsonl(tmp_path / "kept.jsonl")
    assert load(tmp_path / "set").to_list() == kept
    dropped = load(tmp_path / "set", "dropped").to_list()
    assert len(dropped) == 25 and {one["n"] for one in dropped} == {*range(30), None} - {one["n"] for one in kept}
    assert datasets.get_dataset_config_names(str(tmp_path / "set")) == ["kept", "dropped"]


def test_several_reasons_of_a_record_are_one_text(tithe: Command, tmp_path, load):
    said = [{"role": role, "content": f"{role} {i} " * (i + 1)} for i in range(3) for role in ("user", "assistant")]
    data = write_jsonl(
        tmp_path / "in.jsonl", [{"messages": said, "n": i} for i in range(8)] + [{"messages": said[:2], "n": 9}]
    )
    tithe.ok("select", data, "-m", "pocket", "-s", "length", "--turns", "all", "-k", 3, "-o", tmp_path / "kept.jsonl")
    assert any(isinstance(one["tithe_reason"], list) for one in read_jsonl(tmp_path / "kept.tithe" / "dropped.jsonl"))
    tithe.ok("card", tmp_path / "kept.tithe", "-o", tmp_path / "set", "--with-dropped")
    assert load(tmp_path / "set", "dropped")["tithe_reason"][0] == "below the budget"


def test_nothing_dropped_has_no_config(tithe: Command, small, tmp_path, load):
    tithe.ok("select", small, "-m", "pocket", "-s", "length", "-k", "100%", "-o", tmp_path / "kept.jsonl")
    tithe.ok("card", tmp_path / "kept.tithe", "-o", tmp_path / "set", "--with-dropped")
    assert len(load(tmp_path / "set")) == 60
    assert datasets.get_dataset_config_names(str(tmp_path / "set")) == ["kept"]


def test_the_card_says_what_was_done(tithe: Command, run):
    text = tithe.ok("card", run, "--license", "mit").out
    front, record = read_front(text), json.loads((run / "run.json").read_text())
    assert front["tags"] == ["tithe", "data-selection", "instruction-tuning", "length"] and front["license"] == "mit"
    assert "6 records of `in.jsonl`" in text and "out of 30 examples" in text
    for name, n in record["selection"]["dropped"].items():
        assert f"| dropped: `{name}` | {n} |" in text
    assert "| all examples | 30 |" in text and "rows that cannot be read" in text
    assert "tithe select in.jsonl --scorer length --model pocket --keep 6 --drop 'length < 3' -o kept.jsonl" in text
    assert str(run.parent) not in text, "a card names no folder of the machine"


def test_the_command_on_the_card_makes_the_selection_again(tithe: Command, run, tmp_path, monkeypatch):
    import shlex

    text = tithe.ok("card", run).out
    (line,) = [one for one in text.splitlines() if one.startswith("tithe select")]
    monkeypatch.chdir(tmp_path / "home")
    tithe.ok(*shlex.split(line)[1:])
    assert read_jsonl(tmp_path / "home" / "kept.jsonl") == read_jsonl(tmp_path / "kept.jsonl")


def test_a_gate_is_told_with_its_estimates():
    found = {"share": 0.021, "low": 0.01, "high": 0.05}
    gate = {"keeps": "60%", "estimated_damage_in_pool": 0.3, "without_gate": {**found, "share": 0.4}}
    gate["estimated_damage_in_selection"] = found
    selection = {"by": "ifd", "budget": "5%", "filters": [], "examples": 10, "kept": 1, "dropped": {"gate: cut": 9}}
    record = {
        "settings": {"dataset": "a.jsonl", "keep": "5%", "gate": "auto", "pipeline": None, "model": "m"},
        "dataset": {"path": "/a.jsonl"},
        "versions": {"tithe": "1"},
        "counts": {"bad_rows": {}},
        "selection": selection | {"selector": "top"},
        "stages": [{"gate": gate, "scorers": {"sound": {}}, "stage": 0, "selection": selection}],
    }
    text = write_card(record, CardFacts(1))
    assert "kept `60%` of the examples" in text and "about 30% of the pool" in text
    assert (
        "behind the gate, an estimated 2.1% is damaged (1.0% to 5.0%" in text
        and "without a gate, an estimated 40.0%" in text
    )


def test_hostile_values_stay_text(tithe: Command, run):
    record = json.loads((run / "run.json").read_text())
    record["settings"]["dataset"] = record["settings"]["template"] = record["settings"]["model"] = HOSTILE
    record["dataset"]["path"] = "/x"
    record["settings"]["keep"] = record["selection"]["budget"] = HOSTILE
    record["selection"]["by"], record["selection"]["selector"] = HOSTILE, HOSTILE
    record["selection"]["dropped"] = {HOSTILE: 3}
    record["selection"]["filters"] = [HOSTILE]
    record["scorers"] = {HOSTILE: {HOSTILE: HOSTILE}}
    record["model"] = {"name": HOSTILE}
    text = write_card(record, CardFacts(3, 4, None, "a/b"))
    front = read_front(text)
    assert "license" not in front and front["source_datasets"] == ["a/b"] and " ".join(HOSTILE.split()) in front["tags"]
    body = text[text.index("\n# ") :]
    outside = outside_code(body)
    assert "<script>" in body and not any(mark in outside for mark in ("<script>", "](java", "license: mit"))
    assert not any(line.startswith(("---", "# <")) for line in body.splitlines())
    rows = [line for line in body.splitlines() if line.startswith("|") and "script" in line]
    assert rows and all(line.replace("\\|", "").count("|") == 3 for line in rows), "no value makes a cell"


def outside_code(text: str) -> str:
    """Remove code as CommonMark reads it: fenced blocks, then spans between runs of backticks of equal length."""
    import re

    text = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text, flags=re.M | re.S)
    out, at = [], 0
    for run in re.finditer(r"`+", text):
        if run.start() < at:
            continue
        end = re.search(rf"(?<!`){run[0]}(?!`)", text[run.end() :])
        out.append(text[at : run.start()])
        at = run.end() + end.end() if end else run.end()
    return "".join([*out, text[at:]])


@pytest.mark.parametrize("value", ["", "a", "`", "``a`", " a ", "a\nb", "\x1b[31m", "a|b", "\u202e", "x" * 1000])
def test_a_code_span_is_one_span_on_one_line(value):
    made = code(value)
    assert "\n" not in made and "\x1b" not in made and len(made) < 320
    assert made == "-" or outside_code(f"a {made} b") == "a  b"


def test_a_block_ends_where_it_ends():
    assert fenced("a\n````\nb", "bash") == "`````bash\na\n````\nb\n`````"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/data/me/my data/x.jsonl", "x.jsonl"),
        ("ifd@/data/me/model:5% -> length@org/name:1%", "ifd@model:5% -> length@org/name:1%"),
        ("~/models/m", "m"),
        ("rds(target=/a/b.jsonl, by=max)", "rds(target=b.jsonl, by=max)"),
        ("org/name", "org/name"),
        ("data/x.jsonl", "data/x.jsonl"),
        ("n / 2 > 1", "n / 2 > 1"),
        (r"C:\Users\me\x.csv", "x.csv"),
    ],
)
def test_paths_lose_their_folders(text, short):
    assert without_folders(text) == short


@pytest.mark.parametrize("name", ["", "a b", "mit\n", "-x", "x" * 80, "mit: {}", "<b>"])
def test_what_is_no_licence(name):
    if name.strip() == "mit":
        assert check_license(name) == "mit"
        return
    with pytest.raises(SettingsError, match="no licence"):
        check_license(name)


def test_sizes_and_unknown_licences():
    assert check_license("unknown") is None and check_license(None) is None
    sizes = [size_category(n) for n in (0, 999, 1000, 10**5, 10**7, 10**8)]
    assert sizes == ["n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "n>10M", "n>10M"]


def test_bad_places_and_runs(tithe: Command, run, tmp_path):
    def said(*arguments):
        done = tithe("card", *arguments)
        assert done.code == 1 and len(done.errors) == 1, done.err
        return done.err

    assert "no run folder" in said(tmp_path / "nothing")
    assert "is a run folder" in said(run, "-o", run)
    assert "is a file" in said(run, "-o", tmp_path / "kept.jsonl")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    assert "no data set of tithe's" in said(run, "-o", tmp_path / "other", "--overwrite")
    assert (tmp_path / "other" / "README.md").read_text() == "mine"
    assert "no licence" in said(run, "--license", "a b")
    tithe.ok("card", run, "-o", tmp_path / "set", "--with-dropped")
    assert "exists" in said(run, "-o", tmp_path / "set")
    tithe.ok("card", run, "-o", tmp_path / "set", "--overwrite")
    assert not (tmp_path / "set" / "data" / "dropped.jsonl").exists()
    write_jsonl(tmp_path / "home" / "in.jsonl", records(31))
    assert "has changed since" in said(run, "-o", tmp_path / "set2") and not (tmp_path / "set2" / "README.md").exists()
    tithe.ok("score", tmp_path / "home" / "in.jsonl", "-m", "pocket", "-s", "length", "-o", tmp_path / "s.parquet")
    assert "only scored" in said(tmp_path / "s.tithe")


def test_yaml_reads_what_was_meant(run, tithe: Command):
    text = tithe.ok("card", run).out
    head = text.split("---\n", 2)[1]
    assert yaml.safe_dump(yaml.safe_load(head), sort_keys=False, allow_unicode=True) == head
