"""Selections by a mean of ranks, from the command line to the files."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from tests.e2e.command import Command, read_jsonl, write_jsonl

BOTH = "rank(length)+2*rank(random)"


def table_of(folder):
    return pq.read_table(folder / "scores.parquet").to_pandas()


def test_ranks_count_among_what_the_filters_leave(tithe: Command, small, tmp_path):
    out = tmp_path / "kept.jsonl"
    done = tithe.ok(
        "select", small, "--model", "pocket", "-s", "length,random", "--by", " rank(length) + 2*rank(random)",
        "-k", 10, "--drop", "random > 0.9", "-o", out, "--json",
    )  # fmt: skip
    table = table_of(tmp_path / "kept.tithe")
    left = table[table["random"] <= 0.9]
    assert 10 < len(left) < len(table)
    shares = {name: (rankdata(left[name]) - 0.5) / len(left) for name in ("length", "random")}
    expected = (shares["length"] + 2 * shares["random"]) / 3
    np.testing.assert_allclose(left[BOTH], expected, atol=1e-12)
    best = left["row"].to_numpy()[np.argsort(-expected, kind="stable")[:10]]
    given = read_jsonl(small)
    assert read_jsonl(out) == [given[row] for row in sorted(best)]
    chosen = done.json["selection"]
    assert chosen["by"] == BOTH
    assert [(one["score"], one["weight"], one["good"]) for one in chosen["ranks"]] == [
        ("length", 1.0, "high"),
        ("random", 2.0, "high"),
    ]
    assert set(chosen["quantiles"]) >= {BOTH, "length", "random"}
    assert f"{BOTH}, kept" in done.err and "length, kept" in done.err


def test_a_minus_sign_prefers_low_scores(tithe: Command, small, tmp_path):
    tithe.ok(
        "select",
        small,
        "--model",
        "pocket",
        "-s",
        "length",
        "--by",
        "-rank(length)",
        "-k",
        5,
        "-o",
        tmp_path / "a.jsonl",
    )
    table = table_of(tmp_path / "a.tithe").sort_values("length", kind="stable")
    assert set(table["row"][:5]) == set(table[table["dropped"].isna()]["row"])


def test_what_one_scorer_cannot_score_is_dropped_with_its_reason(tithe: Command, small, tmp_path):
    given = read_jsonl(small)
    given[3]["output"] = "x"  # one token: no perplexity of a response of nothing but its end, but a length
    given[5]["output"] = ""
    data = write_jsonl(tmp_path / "holes.jsonl", given)
    done = tithe.ok(
        "select", data, "--model", "pocket", "-s", "length,nuggets(anchors=3)", "--by", "rank(length)+rank(nuggets)",
        "-k", 5, "--max-length", 60, "--truncation", "problem", "-o", tmp_path / "b.jsonl", "--json",
    )  # fmt: skip
    chosen, table = done.json["selection"], table_of(tmp_path / "b.tithe")
    assert chosen["kept"] + sum(chosen["dropped"].values()) == chosen["examples"]
    without = table[table["rank(length)+rank(nuggets)"].isna() & table["id"].notna()]
    assert len(without) and without["problem"].notna().all() and without["dropped"].notna().all()


def test_in_a_pipeline_parts_and_mean_are_columns(tithe: Command, small, tmp_path):
    text = "rank(length)+rank(random):50% -> length:50% -> rank(length)-rank(random(seed=3)):20% -> bottom:2"
    tithe.ok(
        "select", small, "--model", "pocket", "--pipeline", text, "--drop", "length < 4", "-o", tmp_path / "p.jsonl"
    )
    table, record = table_of(tmp_path / "p.tithe"), json.loads((tmp_path / "p.tithe" / "run.json").read_text())
    names = ["length", "random", "rank(length)+rank(random)", "length_2", "length_3", "random_2"]
    assert list(table.columns[3:10]) == [*names, "rank(length_3)-rank(random_2)"]
    assert record["selection"]["by"] == "rank(length_3)-rank(random_2)"
    assert record["stages"][0]["selection"]["ranks"][0]["score"] == "length"
    third = table[table["length_3"].notna()]
    low = (rankdata(third["length"]) - rankdata(third["random_2"])) / len(third) / 2 + 0.5
    np.testing.assert_allclose(third["rank(length_3)-rank(random_2)"], low, atol=1e-12)
    stage = table_of(tmp_path / "p.tithe" / "stage-4")  # chooses by the mean of the stage before, lowest first
    kept = stage[stage["dropped"].isna()]["rank(length)-rank(random)"]
    assert sorted(kept) == sorted(stage["rank(length)-rank(random)"])[:2]


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("rank(length)+rank(ifd)", ["`ifd` is not scored", "`--scorer length,random,ifd`"]),
        ("rank(lenght)", ["`lenght` is not scored", "`length`"]),
        ("length+random", ["which is not scored", "`rank(ifd)+rank(length)`"]),
        ("rank(random(seed=2))", ["settings belong to `--scorer`"]),
        ("rank(length)+", ["is no mean of ranks"]),
    ],
)
def test_what_cannot_rank_is_refused(tithe: Command, small, tmp_path, by, words):
    out = tmp_path / "no.jsonl"
    done = tithe("select", small, "--model", "pocket", "-s", "length,random", "--by", by, "-o", out)
    assert done.code == 1 and all(word in done.err for word in words), done.err
    assert not out.exists() and not (tmp_path / "no.tithe").exists()
