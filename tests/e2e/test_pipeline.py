"""Selections in stages: the same as one after the other by hand, and counts that add up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, child, read_jsonl, records, write_jsonl
from tests.e2e.test_resume import HASTY, count_parts, keys_of_parts, nothing_twice, wait_for
from tests.small_model import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "other-llama", seed=1)


def by_hand(tithe: Command, data: Path, folder: Path, stages: list[list[object]]) -> Path:
    """One `select` after the other, each from the file of the one before."""
    for i, arguments in enumerate(stages):
        out = folder / f"hand-{i}.jsonl"
        tithe.ok("select", data, *arguments, "-o", out)
        data = out
    return data


def table(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "scores.parquet").to_pylist()
    return rows


def test_two_stages_are_two_selections(
    tithe: Command, small: Path, model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    hand = by_hand(
        tithe,
        small,
        tmp_path,
        [
            ["-s", "superfiltering", "--model", other_dir, "-k", "40%", "--no-drop"],
            ["-s", "ifd", "--model", model_dir, "-k", "25%", "--no-drop"],
        ],
    )
    text = f"superfiltering@{other_dir}:40% -> ifd:25%"
    tithe.ok("select", small, "--pipeline", text, "--model", model_dir, "--no-drop", "-o", tmp_path / "k.jsonl")
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes()
    assert len(read_jsonl(hand)) == 6  # 60 x 40 % x 25 %
    ours, theirs = table(tmp_path / "k.tithe" / "stage-2"), table(tmp_path / "hand-1.tithe")
    assert [row["ifd"] for row in ours] == pytest.approx([row["ifd"] for row in theirs], rel=1e-5)
    assert [row["dropped"] for row in ours] == [row["dropped"] for row in theirs]


def test_three_stages_with_selectors_of_their_own(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    model = ["--model", model_dir]
    strata = "stratified(by=category)"
    hand = by_hand(
        tithe,
        small,
        tmp_path,
        [
            [*model, "-s", "length", "--selector", "band(low=0.1, high=0.9)", "-k", "80%"],
            [*model, "-s", "ifd", "--selector", strata, "-k", 12],
            [*model, "-s", "ifd", "--selector", "bottom", "-k", "50%", "--no-drop"],
        ],
    )
    text = f"length|band(low=0.1, high=0.9):80% -> ifd|{strata}:12 -> bottom:50%"
    done = tithe.ok("select", small, "--pipeline", text, *model, "-o", tmp_path / "k.jsonl", "--json").json
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes()
    assert [(stage["in"], stage["kept"]) for stage in done["stages"]] == [(60, 48), (48, 12), (12, 6)]


def test_the_starter_set_with_the_bundled_model(tithe: Command, tmp_path: Path) -> None:
    settings = ["--model", "pocket", "--limit", 150, "--dtype", "fp32"]
    first = ["select", "starter", *settings, "-s", "superfiltering", "-k", "30%", "-o", tmp_path / "a.jsonl"]
    tithe.ok(*first)
    stages: list[list[object]] = [["-s", "perplexity", "-k", 20], ["-s", "ifd", "-k", "25%"]]
    hand = by_hand(tithe, tmp_path / "a.jsonl", tmp_path, [[*settings, *stage] for stage in stages])
    text = "superfiltering:30% -> perplexity:20 -> ifd:25%"
    done = tithe.ok("select", "starter", *settings, "--pipeline", text, "-o", tmp_path / "k.jsonl", "--json").json
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes()
    assert done["selection"]["kept"] == 5
    # Three scorers over the same passes of one model: read once, by the first.
    assert [stage["work"]["passes_computed"] for stage in done["stages"]] == [300, 0, 0]


def test_one_stage_is_a_selection(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    select = ("select", small, "--model", model_dir, "--drop-duplicates", "--json")
    plain = tithe.ok(*select, "-k", "20%", "-o", tmp_path / "a.jsonl").json
    staged = tithe.ok(*select, "--pipeline", "ifd:20%", "-o", tmp_path / "b.jsonl").json
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    dropped = {f"stage 1, ifd: {reason}": n for reason, n in plain["selection"]["dropped"].items()}
    assert staged["selection"]["dropped"] == dropped
    for row, other in zip(table(tmp_path / "a.tithe"), table(tmp_path / "b.tithe"), strict=True):
        why, also = row.pop("dropped"), other.pop("dropped")
        assert row == other and also == (why and f"stage 1, ifd: {why}")


def test_files_and_counts_of_a_run(tithe: Command, model_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    """One row and one reason for every example, two bad rows, and numbers that add up, on screen and on disk."""
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(record) for record in records(60)]
    data.write_text("\n".join([*lines[:5], "{", *lines[5:20], '{"instruction": "Say", "output": ""}', *lines[20:]]))
    text = f"length:50% -> ifd:50% -> ifd@{other_dir}:20% -> stratified(by=category):2"
    arguments = ("select", data, "--pipeline", text, "--model", model_dir, "-o", tmp_path / "k.jsonl", "--json")
    done = tithe.ok(*arguments, "--drop", "length < 3", "--drop", "ifd > 1.1", "--drop", "ifd_2 < 0")
    record, folder = done.json, tmp_path / "k.tithe"
    assert record == json.loads((folder / "run.json").read_text())

    assert pq.read_schema(folder / "scores.parquet").names[:6] == ["id", "row", "turn", "length", "ifd", "ifd_2"]
    rows = table(folder)
    assert [row["row"] for row in rows] == list(range(62))
    bad = [row for row in rows if row["id"] is None]
    assert [row["row"] for row in bad] == [5, 21]
    assert all(row["problem"] == row["dropped"] and row["ifd_2"] is None for row in bad)
    good = [row for row in rows if row["id"] is not None]

    # Which stage an example reached can be read off its scores, off its reason, and off the stages' own tables.
    came = [set(row["id"] for row in table(folder / f"stage-{n}") if row["id"]) for n in (1, 2, 3, 4)]
    for row in good:
        stages = [n for n in (1, 2, 3, 4) if row["id"] in came[n - 1]]
        assert stages == list(range(1, len(stages) + 1))
        assert [row[name] is not None for name in ("length", "ifd", "ifd_2")] == [n in stages for n in (1, 2, 3)]
        if row["dropped"] is not None:
            assert row["dropped"].startswith(f"stage {len(stages)}, ")
        if len(stages) == 1:
            assert row["problem"] == "ifd: dropped in stage 1, length; ifd_2: dropped in stage 1, length"
        else:
            assert row["problem"] == ("ifd_2: dropped in stage 2, ifd" if len(stages) == 2 else None)
    for n, name, own in ((2, "ifd", "ifd"), (3, "ifd_2", "ifd")):
        scores = {row["id"]: row[own] for row in table(folder / f"stage-{n}")}
        assert {row["id"]: row[name] for row in good if row[name] is not None} == scores

    selection = record["selection"]
    kept = [row for row in good if row["dropped"] is None]
    assert selection["kept"] == len(kept) == 2 and selection["examples"] == 60 and selection["bad_rows"] == 2
    assert selection["dropped"] == Counter(row["dropped"] for row in good if row["dropped"])
    assert selection["kept"] + sum(selection["dropped"].values()) == 60
    ins = [stage["in"] for stage in record["stages"]]
    assert ins == [60, *(stage["kept"] for stage in record["stages"][:-1])] == list(map(len, came))
    for stage in record["stages"]:
        assert stage["in"] == stage["kept"] + sum(stage["selection"]["dropped"].values())
        assert stage["of_stage"] == stage["kept"] / stage["in"] and stage["of_all"] == stage["kept"] / 60
        assert ("work" in stage) == (stage["column"] is not None)
    assert [stage["model"]["folder"] for stage in record["stages"][:3]] == [
        str(d) for d in (model_dir,) * 2 + (other_dir,)
    ]
    passes = [stage["work"]["passes_computed"] for stage in record["stages"][:3]]
    assert passes == [0, 2 * ins[1], 2 * ins[2]] and record["work"]["passes_computed"] == sum(passes)

    assert (tmp_path / "k.jsonl").read_text().splitlines() == [
        data.read_text().splitlines()[row["row"]] for row in kept
    ]
    dropped = read_jsonl(folder / "dropped.jsonl")
    assert [record["tithe_reason"] for record in dropped] == [row["dropped"] for row in rows if row["dropped"]]

    shown = [" ".join(line.split()) for line in done.err.splitlines()]
    short = sum(row["length"] < 3 for row in good)
    why = f"{30 - short} below the budget, {short} length < 3"
    assert short and f"60 in, 30 kept (50% of the stage, 50% of all); dropped: {why}" in shown
    assert f"stage 2, ifd 30 {ins[2]} 50% 25%" in shown and ins == [60, 30, 15, 3]
    assert "kept at the end 2" in shown and "= examples 60" in shown and "62 records, 60 examples" in shown
    assert (
        f"dropped: stage 1, length: below the budget {selection['dropped']['stage 1, length: below the budget']}"
        in shown
    )


def stages_of(tithe: Command, data: Path, model: Path, text: str, *more: object) -> list[dict[str, Any]]:
    arguments = ("select", data, "--pipeline", text, "--model", model, "--run-dir", data.with_name("run"), "--json")
    stages: list[dict[str, Any]] = tithe.ok(*arguments, *more).json["stages"]
    return stages


def test_budgets_compound(tithe: Command, small: Path, model_dir: Path) -> None:
    def kept(text: str, *more: object) -> list[int]:
        return [stage["kept"] for stage in stages_of(tithe, small, model_dir, text, *more)]

    assert kept("length:50% -> random:50% -> top:50%") == [30, 15, 7]
    assert kept("length:50% -> random:50% of all -> top:10% of all") == [30, 30, 6]
    assert kept("length:0.5 -> random:10 -> top:3") == [30, 10, 3]
    assert kept("length:50% -> random:100% -> bottom:100%") == [30, 30, 30]
    # A share of what the filters leave, where it is asked for; a share of all stays one.
    drop = ("--drop", "n >= 40", "--keep-of", "kept")
    assert kept("length:50% -> random:50% -> top:10% of all", *drop) == [20, 10, 6]


def test_more_than_is_left_keeps_all_of_it_and_says_so(tithe: Command, small: Path, model_dir: Path) -> None:
    arguments = ("select", small, "--model", model_dir, "--run-dir", small.with_name("run"))
    done = tithe.ok(*arguments, "--pipeline", "length:10 -> random:20 -> top:50% of all -> top:3")
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert notes[:2] == [
        "note: `20` asks for 20 rows, but only 10 of 10 examples can be kept",
        "note: `50% of all` asks for 30 rows, but only 10 of 10 examples can be kept",
    ]
    assert notes[2] == f"note: stage 2, random: {notes[0][6:]}; stage 3, top: {notes[1][6:]}"


def test_token_budgets_are_paid_with_the_stages_own_tokens(tithe: Command, small: Path, model_dir: Path) -> None:
    stages = stages_of(tithe, small, model_dir, "length|bottom:600-tokens -> random:200-tokens -> top:50-tokens")
    tables = [table(small.with_name("run") / f"stage-{n}") for n in (1, 2, 3)]
    for rows, stage, limit in zip(tables, stages, (600, 200, 50), strict=True):
        tokens = [row["response_tokens"] for row in rows if row["dropped"] is None]
        assert len(tokens) == stage["kept"] and 0 < sum(tokens) <= limit
    assert stages[0]["kept"] > stages[1]["kept"] > stages[2]["kept"] > 0


def test_filters_go_to_the_first_stage_that_has_their_column(tithe: Command, small: Path, model_dir: Path) -> None:
    text = f"length:100% -> ifd|bottom:50% -> ifd@{model_dir}|bottom:50%"

    def filters(*more: object) -> list[list[str]]:
        return [stage["selection"]["filters"] for stage in stages_of(tithe, small, model_dir, text, *more)]

    assert filters() == [[], ["ifd > 1"], ["ifd > 1"]]
    assert filters("--no-drop") == [[], [], []]
    assert filters("--drop", "n > 50") == [["n > 50"], ["ifd > 1"], ["ifd > 1"]]
    assert filters("--drop", "response_tokens < 3") == [["response_tokens < 3"], ["ifd > 1"], ["ifd > 1"]]
    assert filters("--drop", "ifd > 1.5", "--drop", "length < 2") == [["length < 2"], ["ifd > 1.5"], ["ifd > 1"]]
    assert filters("--drop", "ifd_2 > 0.99") == [[], ["ifd > 1"], ["ifd > 0.99"]]
    assert filters("--drop", "nll_alone>90") == [[], ["nll_alone>90"], ["ifd > 1"]]  # `length` reads no NLL
    arguments = ("select", small, "--model", model_dir, "--run-dir", small.with_name("run"))
    done = tithe.ok(*arguments, "--pipeline", "length:50%", "--drop", "nll_given > 1")
    assert "note: the filter `nll_given > 1` did nothing: no stage reads its column" in done.err
    failed = tithe.fails(*arguments, "--pipeline", text, "--drop", "ifd_3 > 1")
    assert "no column `ifd_3`" in failed.err and "`ifd_2`" in failed.err
    replaced = tithe.ok(*arguments, "--pipeline", text, "--drop", "nll_given > 90").err
    assert "note: these filters replace ifd's default filter, `ifd > 1`" in replaced


def test_duplicates_are_dropped_in_the_first_stage(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(10) + records(10))
    stages = stages_of(tithe, data, model_dir, "length:100% -> random:50%", "--drop-duplicates")
    assert stages[0]["selection"]["dropped"] == {"exact duplicate": 10} and stages[1]["kept"] == 5


def test_turns_are_dropped_one_by_one(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    turns = [("user", "Name a colour"), ("assistant", "red " * 3), ("user", "And?"), ("assistant", "green and " * 5)]
    made = [
        {"messages": [{"role": role, "content": f"{text} {i}" * (1 + i % 4)} for role, text in turns]} for i in range(8)
    ]
    data = write_jsonl(tmp_path / "data.jsonl", made)
    stages = stages_of(tithe, data, model_dir, "length:12 -> random:5", "--turns", "all")
    assert [(stage["in"], stage["kept"]) for stage in stages] == [(16, 12), (12, 5)]
    rows = table(tmp_path / "run")
    best = sorted(rows, key=lambda row: (-row["length"], row["row"], row["turn"]))[:12]
    assert {(row["row"], row["turn"]) for row in rows if row["random"] is not None} == {
        (row["row"], row["turn"]) for row in best
    }


def test_neighbours_are_those_that_are_left(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """Worked examples, and the words that tf-idf knows: as if the earlier stage's file were all there is."""
    settings = ["--model", model_dir, "--encoder", "tfidf(dims=8)"]
    hand = by_hand(
        tithe,
        small,
        tmp_path,
        [["--model", model_dir, "-s", "length", "-k", "50%"], [*settings, "-s", "miwv", "-k", 5]],
    )
    tithe.ok("select", small, *settings, "--pipeline", "length:50% -> miwv:5", "-o", tmp_path / "k.jsonl")
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes()
    stage = tmp_path / "k.tithe" / "stage-2"
    left = {row["id"] for row in table(stage)}
    neighbours = pq.read_table(stage / "neighbours.parquet").to_pylist()
    assert len(left) == len(neighbours) == 30 and {row["neighbour"] for row in neighbours} <= left
    assert neighbours == pq.read_table(tmp_path / "hand-1.tithe" / "neighbours.parquet").to_pylist()


APART = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from tithe.selectors.base import scored
from tithe.selectors.rank import Ranked

@dataclass(frozen=True)
class Apart(Ranked):
    "Keeps what is least like the mean of all."
    name: ClassVar[str] = "apart"
    encoder: str = "tfidf(dims=8)"

    def order(self, scores):
        there = scored(scores)
        vectors = scores.vectors[there].astype(np.float64)
        return there[np.argsort((vectors @ vectors.mean(axis=0)).round(4), kind="stable")]
"""


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A selector that looks at vectors, installed as far as entry points are concerned."""
    info = tmp_path / "site" / "apart_ness-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: apart-ness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tithe.selectors]\napart = apart_ness:Apart\n")
    (tmp_path / "site" / "apart_ness.py").write_text(APART)
    monkeypatch.delitem(sys.modules, "apart_ness", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.parametrize("encoder", ["tfidf(dims=8)", "self"])
@pytest.mark.parametrize("alone", [True, False], ids=["a stage of its own", "with its scorer"])
@pytest.mark.usefixtures("apart")
def test_selectors_that_look_at_vectors(
    tithe: Command, small: Path, model_dir: Path, other_dir: Path, tmp_path: Path, encoder: str, alone: bool
) -> None:
    """`self` is the model of the stage whose scores are read, tf-idf knows what is left, as by hand."""
    chosen = ["--model", other_dir, "-s", "length", "--selector", "apart", "-k", 5, "--encoder", encoder]
    first = ["--model", other_dir, "-s", "length", "-k", "50%"]
    hand = by_hand(tithe, small, tmp_path, [first, chosen])
    last = "apart:5" if alone else f"length@{other_dir}|apart:5"
    text = f"length@{other_dir}:50% -> {last}"
    arguments = ("--model", model_dir, "--pipeline", text, "--encoder", encoder, "-o", tmp_path / "k.jsonl", "--json")
    done = tithe.ok("select", small, *arguments).json
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes()
    assert done["stages"][1]["learned"]["encoders"][encoder]["texts"] == 30
    parts = (tmp_path / "k.tithe" / "embeddings").rglob("part-*.parquet")
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 30
    again = tithe.ok("select", small, *arguments, "--overwrite").json
    assert again["stages"][1]["learned"]["encoders"][encoder]["encoded"] == 0


def test_diverse_selectors_in_a_cascade(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    settings = ["--model", model_dir, "--no-drop"]
    vectors = [*settings, "--encoder", "tfidf(dims=8)", "-s", "ifd"]
    stages: list[list[object]] = [
        [*settings, "-s", "superfiltering", "-k", "50%"],
        [*vectors, "--selector", "kmeans(clusters=3)", "-k", "50%"],
        [*vectors, "--selector", "facility-location", "-k", "40%"],
    ]
    hand = by_hand(tithe, small, tmp_path, stages)
    text = "superfiltering:50% -> ifd|kmeans(clusters=3):50% -> facility-location:10% of all"
    arguments = (*settings, "--encoder", "tfidf(dims=8)", "--pipeline", text, "-o", tmp_path / "k.jsonl")
    tithe.ok("select", small, *arguments)
    assert (tmp_path / "k.jsonl").read_bytes() == hand.read_bytes() and len(read_jsonl(hand)) == 6


def test_a_stage_that_keeps_nothing_is_named_and_nothing_is_lost(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    arguments = ("select", small, "--model", model_dir, "-o", tmp_path / "k.jsonl")
    failed = tithe.fails(*arguments, "--pipeline", "ifd:40% -> length:50% -> top:1", "--drop", "length > 0")
    assert (
        "error: stage 2, length: nothing is kept, all 24 examples that came in are dropped: `length > 0` (24)"
        in failed.err
    )
    folder = tmp_path / "k.tithe"
    assert not (tmp_path / "k.jsonl").exists()
    assert json.loads((folder / "run.json").read_text())["outcome"]["status"] == "failed"
    assert len(table(folder / "stage-1")) == 60 and len(table(folder / "stage-2")) == 24
    again = tithe.ok(*arguments, "--pipeline", "ifd:40% -> length:50% -> top:1", "--json").json
    assert again["work"]["passes_computed"] == 0 and again["selection"]["kept"] == 1


# pipeline -> words of the error; nothing is scored and no folder is made
REFUSED = {
    "ifd:5% -> idf:5%": "stage 2, `idf:5%`, names no scorer or selector: `idf`",
    "ifd": "stage 1, `ifd`, has no budget",
    "ifd:0": "stage 1, ifd: budget `0` keeps nothing",
    "top:5% -> ifd:5%": "stage 1, top: a selector chooses by the scores of the stage before",
    "ifd:5% -> ": "stage 2 of the pipeline `ifd:5% ->` is empty",
    "length:50% -> ifd@no/such/folder:5%": "stage 2, ifd: ",
    "length:50% -> stratified(by=categry):5%": "stage 2, stratified: ",
    "length:50% length:5%": "has two budgets",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_before_anything_is_scored(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, text: str
) -> None:
    failed = tithe.fails("select", small, "--pipeline", text, "--model", model_dir, "-o", tmp_path / "k.jsonl")
    assert REFUSED[text] in failed.err
    assert not (tmp_path / "k.tithe").exists()


def test_other_flags_that_do_not_go_with_it(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    arguments = ("select", small, "--model", model_dir, "-o", tmp_path / "k.jsonl", "--pipeline", "length:5%")
    for more in (["-s", "length"], ["-k", "7"], ["--selector", "bottom"], ["--by", "length"]):
        assert "does not go with `--pipeline`" in tithe.fails(*arguments, *more).err
    failed = tithe.fails(*arguments, "--encoder", "tfidf")
    assert "nothing reads it" in failed.err and "`length`" in failed.err
    assert "--pipeline" in tithe.fails("plan", small, "--pipeline", "ifd:5%", "--model", model_dir, code=2).err


def test_an_early_share_of_nothing_is_named(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    arguments = ("select", small, "--model", model_dir, "-o", tmp_path / "k.jsonl", "--pipeline")
    failed = tithe.fails(*arguments, "length:5% -> random:5%")
    assert "error: stage 2, random: a budget of `5%` of 3 examples comes to 0 rows" in failed.err


def test_one_model_is_loaded_once_and_two_are_not_held(
    tithe: Command, small: Path, model_dir: Path, other_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    from tithe.engine import loading

    real, loaded, alive = loading.load_model, [], []

    def load(source: Any, **more: Any) -> Any:
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))
        made = real(source, **more)
        loaded.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(loading, "load_model", load)
    text = f"ifd:90% -> ifd@{other_dir}:90% -> superfiltering@{other_dir}(same_tokens=true):90%"
    text = text.replace(f"@{other_dir}(same_tokens=true)", f"(same_tokens=true)@{other_dir}")
    tithe.ok("select", small, "--pipeline", text, "--model", model_dir, "--eos", "-o", tmp_path / "k.jsonl")
    assert alive == [0, 0]


def test_a_data_set_that_changes_between_two_stages_is_noticed(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tithe.run import pipeline

    real = pipeline.write_table

    def replaced(path: Path, table: Any) -> None:
        real(path, table)
        if path.parent.name == "stage-1":
            write_jsonl(tmp_path / "other.jsonl", records(60)[::-1]).replace(small)

    monkeypatch.setattr(pipeline, "write_table", replaced)
    arguments = ("select", small, "--pipeline", "length:50% -> ifd:50%", "--model", model_dir)
    failed = tithe.fails(*arguments, "-o", tmp_path / "k.jsonl")
    assert "stage 2, ifd: " in failed.err and "has changed since this run began to read it" in failed.err
    assert not (tmp_path / "k.jsonl").exists()
    assert json.loads((tmp_path / "k.tithe" / "run.json").read_text())["outcome"]["status"] == "failed"


def test_results_of_earlier_stages_do_not_stay(tithe: Command, small: Path, model_dir: Path) -> None:
    stages_of(tithe, small, model_dir, "length:50% -> random:50% -> top:50%")
    run = small.with_name("run")
    assert (run / "stage-3" / "scores.parquet").exists()
    stages_of(tithe, small, model_dir, "length:50% -> random:50%")
    assert (run / "stage-2" / "scores.parquet").exists() and not (run / "stage-3" / "scores.parquet").exists()


def test_per_token_goes_to_the_stages(tithe: Command, small: Path, model_dir: Path) -> None:
    stages_of(tithe, small, model_dir, "ifd:10 -> superfiltering:5", "--per-token")
    run = small.with_name("run")
    assert [pq.read_metadata(run / f"stage-{n}" / "tokens.parquet").num_rows for n in (1, 2)] == [120, 20]


def test_the_run_record_repeats_the_run(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    first = ("select", small, "--model", model_dir, "--pipeline", "ifd:50% -> random|bottom:9", "--drop", "n > 50")
    record = tithe.ok(*first, "--seed", 3, "-o", tmp_path / "a.jsonl", "--json").json
    config = tmp_path / "again.yaml"
    config.write_text(json.dumps(record["settings"]))
    again = tithe.ok("select", "--config", config, "-o", tmp_path / "b.jsonl", "--json").json
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    for key in ("settings", "dataset", "counts", "selection", "versions"):
        assert again[key] == record[key]
    assert "pipeline" in tithe.fails("plan", "--config", config).err


def test_from_python(small: Path, model_dir: Path, tmp_path: Path) -> None:
    import tithe

    chosen = tithe.select(small, pipeline="ifd:50% -> length:50% -> top:3", drop=(), model=str(model_dir))
    assert len(chosen) == 3 and len(chosen.kept) + len(chosen.dropped) == len(chosen.scores) == 60
    assert [len(stage.chosen) for stage in chosen.stages] == [30, 15, 3]
    assert chosen.scored.scores("ifd").by == "ifd" and not chosen.scored.scores("ifd").problems
    longest = chosen.stages[2].chosen.scores
    assert chosen.scores.by == "length" and dict(longest).items() <= dict(chosen.scores).items()
    chosen.write(tmp_path / "k.jsonl")
    assert read_jsonl(tmp_path / "k.jsonl") == list(chosen.records())
    assert str(chosen).splitlines()[:2] == [
        "kept 3 of 60 by ifd:50% -> length:50% -> top:3",
        "stage 1, ifd: " + chosen.stages[0].sentence,
    ]
    again = tithe.select(tithe.load(small, limit=20), pipeline="length:5", model=str(model_dir))
    assert len(again) == 5 and len(again.scores) == 20


STAGED = "superfiltering:60% -> ifd@{}:50% -> stratified(by=category):30"
MOMENTS: dict[str, Callable[[Path], object]] = {
    "in the first stage": lambda run: count_parts(run) >= 3,
    "between two stages": lambda run: (run / "stage-1" / "scores.parquet").exists(),
    "in the second stage": lambda run: (run / "stage-1" / "scores.parquet").exists() and len(models_of(run)) == 2,
    "at the last stage": lambda run: (run / "stage-3").exists(),
}


def models_of(run: Path) -> set[str]:
    return {part.parent.name for part in run.rglob("part-*.parquet")}


def staged(data: Path, model: Path, other: Path, folder: Path) -> list[object]:
    text = STAGED.format(other)
    first = ["select", data, "--model", model, "--pipeline", text, "--batch-tokens", 256]
    return [*first, "-o", folder / "k.jsonl", "--json"]


def files(folder: Path) -> dict[str, bytes]:
    names = ("k.jsonl", "k.tithe/scores.parquet", "k.tithe/dropped.jsonl")
    names += tuple(f"k.tithe/stage-{n}/scores.parquet" for n in (1, 2, 3))
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.thorough
def test_killed_and_run_again(tithe: Command, model_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    """At every moment; the next test takes one of them."""
    many = write_jsonl(tmp_path / "many.jsonl", records(240))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = tithe.ok(*staged(many, model_dir, other_dir, straight)).json
    run = broken / "k.tithe"
    for name, moment in MOMENTS.items():
        process = child(HASTY, 0.005, *staged(many, model_dir, other_dir, broken))
        reached = wait_for(lambda moment=moment: moment(run), process)
        process.kill()
        process.communicate()
        assert reached or name == "at the last stage", name  # which passes in a blink
        (broken / "k.jsonl").unlink(missing_ok=True)
    before = set().union(*keys_of_parts(run))
    again = tithe.ok(*staged(many, model_dir, other_dir, broken)).json
    assert files(broken) == files(straight)
    assert before and [stage["kept"] for stage in again["stages"]] == [stage["kept"] for stage in whole["stages"]]
    computed = [stage["work"]["passes_computed"] for stage in again["stages"] if "work" in stage]
    total = [stage["work"]["passes_computed"] for stage in whole["stages"] if "work" in stage]
    assert computed[0] == 0 and computed[1] < total[1]
    parts = keys_of_parts(run)
    assert sum(map(len, parts)) == sum(total)
    assert {key: again[key] for key in ("settings", "counts", "selection")} == {
        key: whole[key] for key in ("settings", "counts", "selection")
    }
    assert not list(broken.rglob("*.part")) and not list(broken.rglob("*.tmp"))


def test_killed_in_a_stage_and_run_again(tithe: Command, model_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    many = write_jsonl(tmp_path / "many.jsonl", records(60))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = tithe.ok(*staged(many, model_dir, other_dir, straight)).json
    process: subprocess.Popen[str] = child(HASTY, 0.02, *staged(many, model_dir, other_dir, broken))
    run = broken / "k.tithe"
    assert wait_for(lambda: MOMENTS["in the second stage"](run), process)
    process.kill()
    process.communicate()
    stored = sum(map(len, keys_of_parts(run)))  # a pass has the same key under both models
    again = tithe.ok(*staged(many, model_dir, other_dir, broken)).json
    assert files(broken) == files(straight)
    nothing_twice(again["work"], whole["work"]["passes_computed"], stored)
