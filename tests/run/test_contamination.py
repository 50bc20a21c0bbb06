"""Find examples that share text with evaluation files, and select without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tithe as library
from tests.e2e.command import read_jsonl, records, write_jsonl
from tithe.errors import DataError, SettingsError
from tithe.lab.contamination_report import contamination, report
from tithe.run.pipeline import select
from tithe.settings import SelectSettings

LONG = "A farmer has seventeen sheep and all but nine of them run away in the night how many are left"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = records(20)
    rows[3] |= {"instruction": f"Please solve. {LONG.upper()}?", "input": ""}
    rows[7] |= {"output": f"The question is: {LONG}."}
    rows[11] |= {"instruction": "Who is it?", "input": ""}
    rows[15] |= {"instruction": LONG.replace("nine", "eight").replace("run", "ran"), "input": ""}  # a near miss
    return write_jsonl(tmp_path / "data.jsonl", rows)


@pytest.fixture
def evals(tmp_path: Path) -> list[Path]:
    sums = [{"question": f"{LONG}?", "answer": "nine"}, {"question": "Something else altogether", "answer": "1"}]
    asked = [{"id": "w_0", "prompt": "Who is it?"}, {"id": "w_1", "prompt": "What is it?"}]
    return [write_jsonl(tmp_path / "sums.jsonl", sums), write_jsonl(tmp_path / "asked.jsonl", asked)]


def test_counts_places_and_reasons(data: Path, evals: list[Path]) -> None:
    found = contamination(data, evals)
    sums, asked = found.record["against"]["sums.jsonl"], found.record["against"]["asked.jsonl"]
    assert (sums["examples_hit"], sums["items_hit"], sums["items"]) == (2, 1, 2)
    assert (asked["examples_hit"], asked["items_hit"], asked["items"]) == (1, 1, 2)
    assert asked["items_shorter_than_ngram"] == 2 and asked["items_mostly_covered"] == 1
    assert found.record["examples_hit"] == 3 and found.record["dataset"]["examples"] == 20
    places = {one.id: one.where for one in library.load(data)}
    assert {places[id_].rpartition(":")[2]: reason for id_, reason in found.examples.items()} == {
        "4": "contaminated: 13-gram shared with sums.jsonl",
        "8": "contaminated: 13-gram shared with sums.jsonl",
        "12": "contaminated: the same as a short item of asked.jsonl",
    }
    worst = sums["worst"][0]
    assert (worst["example"], worst["item"]) == (f"{data}:4", f"{evals[0]}:1")
    # 20 words and the answer: 9 runs of 13, the last of which takes in the answer that the example has not.
    assert worst["shared_ngrams"] == 8 and worst["share_of_item"] == 0.8889
    assert worst["text"] == " ".join(LONG.lower().split()[:13])
    json.dumps(found.record)


def test_another_length(data: Path, evals: list[Path]) -> None:
    found = contamination(data, evals[:1], n=20).examples
    assert [*found.values()] == ["contaminated: 20-gram shared with sums.jsonl"] * 2
    assert contamination(data, evals[:1], n=30).examples == {}
    assert [len(contamination(data, evals[:1], n=n).examples) for n in (9, 8)] == [2, 3]  # the near miss has 8 in a row


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda evals: ([], {}), "no evaluation file given"),
        (lambda evals: ([evals[0]] * 2, {}), "is given twice"),
        (lambda evals: (evals, {"n": 0}), "`ngram` cannot be `0`"),
    ],
)
def test_what_cannot_be(data: Path, evals: list[Path], change: Any, why: str) -> None:
    against, more = change(evals)
    with pytest.raises(SettingsError, match=why):
        contamination(data, against, **more)


def test_a_file_without_text(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no text"):
        contamination(data, [write_jsonl(tmp_path / "n.jsonl", [{"n": 1}])])


def test_files_of_one_name(data: Path, evals: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    second = write_jsonl(tmp_path / "other" / "sums.jsonl", read_jsonl(evals[0]))
    assert set(contamination(data, [evals[0], second]).record["against"]) == {str(evals[0]), str(second)}


def test_the_report_is_written(data: Path, evals: list[Path], tmp_path: Path) -> None:
    found = report(data, evals, output=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["examples"] == found.examples


def test_training_data_held_out_against_itself(data: Path, tmp_path: Path) -> None:
    """Records of the file are found if they are long enough for a run of words, or equal as a whole."""
    held = write_jsonl(tmp_path / "held.jsonl", read_jsonl(data)[:6])
    assert {int(reason.count("held.jsonl")) for reason in contamination(data, [held]).examples.values()} == {1}
    assert contamination(data, [held]).record["against"]["held.jsonl"]["items_hit"] == 6


def settings(data: Path, evals: list[Path], **more: Any) -> SelectSettings:
    given = {
        "dataset": str(data),
        "model": "pocket",
        "scorer": ("random",),
        "keep": "50%",
        "drop_contaminated": tuple(map(str, evals)),
    }
    return SelectSettings.of(given | more)


def test_a_selection_without_them(data: Path, evals: list[Path], tmp_path: Path) -> None:
    result = select(settings(data, evals, keep=20), folder=tmp_path / "run")
    assert len(result.kept) == 17
    assert result.record["selection"]["dropped"] == {
        "contaminated: 13-gram shared with sums.jsonl": 2,
        "contaminated: the same as a short item of asked.jsonl": 1,
    }
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["drop_contaminated"] == [str(path) for path in evals]
    told = record["contamination"]["against"]["sums.jsonl"]
    assert told["examples_hit"] == 2 and len(told["digest"]) == 32
    assert result.dropped == contamination(data, evals).examples
    assert "contamination" not in select(settings(data, [])).record


def test_they_go_before_the_budget_and_before_duplicates(data: Path, evals: list[Path]) -> None:
    rows = read_jsonl(data)
    write_jsonl(data, [*rows, rows[3], rows[0]])
    result = select(settings(data, evals, keep=30, drop_duplicates=True))
    counts = result.record["selection"]["dropped"]
    assert counts["contaminated: 13-gram shared with sums.jsonl"] == 3 and counts["exact duplicate"] == 1
    assert len(result.kept) == 22 - 4 - 1


def test_in_a_pipeline_the_first_stage_drops_them(data: Path, evals: list[Path], tmp_path: Path) -> None:
    given = {"dataset": str(data), "model": "pocket", "pipeline": "random:10 -> random:5"}
    given |= {"drop_contaminated": tuple(map(str, evals))}
    result = select(SelectSettings.of(given), folder=tmp_path / "run")
    counts = result.record["selection"]["dropped"]
    assert {reason: n for reason, n in counts.items() if "contaminated" in reason} == {
        "stage 1, random: contaminated: 13-gram shared with sums.jsonl": 2,
        "stage 1, random: contaminated: the same as a short item of asked.jsonl": 1,
    }
    assert sum(counts.values()) + len(result.kept) == 20
    assert json.loads((tmp_path / "run" / "run.json").read_text())["contamination"]["examples_hit"] == 3


def test_a_missing_file_stops_before_anything_is_scored(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation file"):
        select(settings(data, [tmp_path / "none.jsonl"]), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shared
@pytest.mark.slow
def test_dolly(shared: Path) -> None:
    """Find the same examples by an independent search: sets of 13-tuples, HumanEval against the pool."""
    path = shared / "data" / "eval" / "humaneval.jsonl"
    found = contamination(shared / "data" / "sft" / "dolly_15k.jsonl", [path])
    runs = set()
    for item in read_jsonl(path):
        parts = [part for name, part in item.items() if isinstance(part, str) and name != "task_id"]
        said = normal(" ".join(parts))
        runs |= {tuple(said[i : i + 13]) for i in range(len(said) - 12)}
    hit = []
    for example in library.load(shared / "data" / "sft" / "dolly_15k.jsonl"):
        said = normal(" ".join([*(m.content for m in example.prompt), example.response.content]))
        if any(tuple(said[i : i + 13]) in runs for i in range(len(said) - 12)):
            hit.append(example.id)
    assert hit == [id_ for id_, why in found.examples.items() if "13-gram" in why] and 0 < len(hit) < 20


def normal(text: str) -> list[str]:
    import unicodedata

    text = unicodedata.normalize("NFKC", text).lower()
    return "".join(char if char.isalnum() else " " for char in text).split()
