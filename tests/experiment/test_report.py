"""The page: one file, nothing fetched, nothing unescaped; and its pictures."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from tests.experiment.fabricated import fabricate, settings_of
from tithe.experiment.outcome import ExperimentResult
from tithe.experiment.report import write_report
from tithe.experiment.results import results

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
    found = results(outcomes, settings)
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
def test_pictures_and_table(page):
    names = {path.name for path in (page / "plots").iterdir()}
    assert names == {f"holdout_nll-{what}.png" for what in ("budget", "effects", "outcomes")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (page / "plots").iterdir())
    rows = list(csv.DictReader((page / "comparisons.csv").read_text().splitlines()))
    # two arms x two budgets; the same by two groups; three arms x two budgets against full; two references x two
    assert len(rows) == 4 + 8 + 6 + 4
    assert {row["verdict"] for row in rows if row["arm"] == "a" and row["against"] == "random"} == {"better"}
