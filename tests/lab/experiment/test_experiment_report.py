"""The page: one file, nothing fetched, nothing unescaped; and its pictures."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from tests.lab.experiment.fabricated import fabricate, settings_of
from tithe.lab.evaluate.comparison import Comparison
from tithe.lab.experiment.comparisons import ExperimentResult, compare_arms
from tithe.lab.experiment.experiment_report import unmeasured, write_report
from tithe.report.charts import BETTER, COLOURS, SAME, WORSE, arm_chart

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    settings = settings_of(["a", "b", "random", "full", "base"], ["5%", "20%"], 3)
    outcomes = fabricate({"a": 0.5, "full": 0.6, "base": -0.4}, settings, np.random.default_rng(0), groups=["x", EVIL])
    arms = [
        {
            "arm": arm,
            "budget": budget,
            "draws": 1,
            "examples": n,
            "response_tokens": 10 * n,
            "median_length": 10.0,
            "steps": 9,
            "same_as": None,
        }
        | {"shared_with_random": None}
        for arm in ("a", "b", "random")
        for budget, n in (("5%", 50), ("20%", 200))
    ]
    arms.append({**arms[0], "arm": "full", "budget": "100%", "examples": 1000})
    data = {"pool": 1000, "held_out": 100, "prompts": 100, "left_out": {EVIL: 3}}
    against = {"held.jsonl": {"examples_hit": 2, "items_hit": 1, "items": 100}}
    record = {
        "settings": settings.model_dump(mode="json"),
        "recipe": {"digest": "abc"},
        "model": {"name": EVIL},
        "versions": {},
        "data": {**data, "contamination": {"ngram": 13, "against": against}},
        "arms": arms,
    }
    for outcome in outcomes:
        place = folder / "cells" / outcome.trained
        if outcome.record["training"]:
            place.mkdir(parents=True)
            line = json.dumps({"instruction": f"Asked of {outcome.cell.arm}", "input": None, "output": EVIL})
            (place / "train.jsonl").write_text(f"{line}\n" * 5)
    (folder / "record.json").write_text(json.dumps(record))
    found = compare_arms(outcomes, settings)
    write_report(ExperimentResult(folder, record, found, tuple(outcomes)), settings)
    return folder


@pytest.mark.slow
def test_it_is_one_file_without_scripts(page):
    text = (page / "report.html").read_text()
    assert EVIL not in text and "&lt;script&gt;" in text
    assert not re.search(r"<script|<link|<iframe|<img|url\(|@import|src=", text)
    linked = set(re.findall(r'https?://[^"\s<]+', text))
    assert all("w3.org" in one for one in linked), linked  # names of SVG's namespaces


@pytest.mark.slow
def test_what_it_says(page):
    text = (page / "report.html").read_text()
    assert "a at 5%: better than random on holdout_nll by" in text
    assert "13-grams shared with held.jsonl: 2 examples of the pool" in text and "holdout_nll by group" in text
    assert text.count("<svg") == 3 and "Against the full set" in text


@pytest.mark.slow
def test_caveats_losses_and_records_are_on_the_page(page):
    text = (page / "report.html").read_text()
    assert "only 9 optimiser steps (a at 5%): warm-up and decay are over" in text
    assert "only 50 examples to train on (a at 5%)" in text and "<code>train_batch_size</code>" in text
    assert "these verdicts are of 3 seeds" in text and "holdout_nll is compared on 100 items" in text
    assert "<td>base</td>" in text  # the untrained model
    assert text.count("<td>3.0000</td><td>2.0000</td>") == 3 * 6 + 3  # first and last loss of every training
    assert text.count("<td>a, 5%</td>") == 3
    assert "Asked of a | &lt;script&gt;alert(1)&lt;/script&gt;" in text


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(page):
    before = (page / "report.html").read_bytes()
    settings = settings_of(["a", "b", "random", "full", "base"], ["5%", "20%"], 3)
    outcomes = fabricate({"a": 0.5, "full": 0.6, "base": -0.4}, settings, np.random.default_rng(0), groups=["x", EVIL])
    record = json.loads((page / "record.json").read_text())
    write_report(ExperimentResult(page, record, compare_arms(outcomes, settings), tuple(outcomes)), settings)
    assert (page / "report.html").read_bytes() == before


def test_items_without_a_value_are_said():
    one = Comparison("m", None, "a", "random", "5%", "x", (1.0, 1.0), 8, 6, (0.0,), None, None)
    assert list(unmeasured([one])) == [
        "m is compared on 8 items; 6 of those measured have no value in some run, and are in no comparison"
    ]


def test_one_budget_is_drawn_as_points_by_arm():
    rows = [{"arm": arm, "examples": 9, "mean": 1.0, "low": 0.9, "high": 1.2} for arm in ("a", "random")]
    chart = arm_chart(rows, {"base": 2.0}, "nats").to_dict()
    assert [row["arm"] for row in chart["data"]["values"]] == ["a", "random", "base"]
    assert {layer["mark"]["type"] for layer in chart["layer"]} == {"rule", "point"}


def test_colours_have_one_meaning():
    assert not {*COLOURS} & {BETTER, WORSE, SAME} and len({*COLOURS}) == len(COLOURS)


@pytest.mark.slow
def test_pictures_and_table(page):
    names = {path.name for path in (page / "plots").iterdir()}
    assert names == {f"holdout_nll-{what}.png" for what in ("budget", "effects", "outcomes")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (page / "plots").iterdir())
    rows = list(csv.DictReader((page / "comparisons.csv").read_text().splitlines()))
    # two arms x two budgets; the same by two groups; three arms x two budgets against full; two references x two
    assert len(rows) == 4 + 8 + 6 + 4
    assert {row["verdict"] for row in rows if row["arm"] == "a" and row["against"] == "random"} == {"better"}
