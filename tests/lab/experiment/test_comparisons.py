"""From outcomes to verdicts: families, directions, one recipe, and how often chance is called an effect."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.lab.experiment.fabricated import fabricate, settings_of
from tithe.errors import StoreError
from tithe.lab.experiment.comparisons import compare_arms
from tithe.lab.experiment.reporter import sentence


@pytest.mark.slow
def test_families():
    settings = settings_of(["a", "b", "random", "full", "base"], ["5%", "20%"], 3)
    outcomes = fabricate({"a": 0.5, "full": 0.8, "base": -0.5}, settings, np.random.default_rng(0), groups=["x", "y"])
    found = compare_arms(outcomes, settings)
    assert [(one.arm, one.budget) for one in found.against] == [("a", "5%"), ("b", "5%"), ("a", "20%"), ("b", "20%")]
    assert {one.family for one in found.against} == {4}
    assert {(one.group, one.family) for one in found.groups} == {("x", 8), ("y", 8)}
    assert {one.arm for one in found.full} == {"a", "b", "random"} and {one.against for one in found.full} == {"full"}
    assert [(one.arm, one.budget) for one in found.references] == [
        ("full", "100% against 5%"),
        ("base", "untrained against 5%"),
        ("full", "100% against 20%"),
        ("base", "untrained against 20%"),
    ]
    verdicts = {(one.arm, one.budget): one.verdict for one in found.against}
    assert verdicts["a", "5%"] == verdicts["a", "20%"] == "better"
    assert {one.verdict for one in found.references if one.arm == "base"} == {"worse"}
    said = {(one.arm, one.budget): sentence(one) for one in found.references}
    assert said["base", "untrained against 20%"].startswith(
        "base (untrained): worse than random at 20% on holdout_nll by"
    )
    assert said["full", "100% against 5%"].startswith("full at 100%: better than random at 5% on holdout_nll by")
    assert len(found.means) == 8 and {len(one.by_seed) for one in found.means} == {3}


def test_budgets_stand_in_the_order_in_which_they_were_named():
    """Cells are trained the largest first; nobody reads them so."""
    settings = settings_of(["a", "random", "base"], ["5%", "20%"], 3)
    outcomes = fabricate({}, settings, np.random.default_rng(0))
    outcomes.sort(key=lambda one: str(one.cell.budget), reverse=True)
    found = compare_arms(outcomes, settings)
    assert [one.budget for one in found.means] == ["-", "5%", "5%", "20%", "20%"]
    assert [one.budget for one in found.against] == ["5%", "20%"]


def test_another_recipe_is_refused_by_name():
    settings = settings_of(["a", "random"], ["5%"], 3)
    outcomes = fabricate({}, settings, np.random.default_rng(0))
    outcomes[1].record["training"]["recipe_digest"] = "other"
    with pytest.raises(StoreError, match="not all cells were trained by one recipe: `a-5%-seed0` by r, `a-5%-seed1`"):
        compare_arms(outcomes, settings)


@pytest.mark.parametrize("world", [(0.0, 0.3, 0.5), (0.05, 0.3, 0.5), (0.3, 0.3, 0.5)])
def test_chance_is_seldom_called_better(world, monkeypatch):
    """Whole experiments in which no arm is better; the benchmark has the full number of them."""
    for name in ("item_test", "detectable", "items_needed", "seeds_needed"):  # which no verdict reads
        monkeypatch.setattr(f"tithe.lab.evaluate.comparison.{name}", lambda *_: None)
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # statsmodels calls it each time
    settings = settings_of(["a", "b", "c", "d", "random"], ["5%"], 3)
    rng, times = np.random.default_rng(1), 200
    said = [
        any(
            one.verdict == "better" for one in compare_arms(fabricate({}, settings, rng, world=world), settings).against
        )
        for _ in range(times)
    ]
    assert np.mean(said) <= 0.06


def test_sentences():
    settings = settings_of(["good", "bad", "same", "random"], ["5%"], 3)
    effects = {"good": 0.6, "bad": -0.6, "same": 0.02}
    outcomes = fabricate(effects, settings, np.random.default_rng(4), world=(0.02, 0.2, 0.3))
    said = {one.arm: sentence(one) for one in compare_arms(outcomes, settings).against}
    assert said["good"].startswith("good at 5%: better than random on holdout_nll by 0.")
    assert "after Holm over 3)" in said["good"] and "nats/token" in said["good"]
    assert said["bad"].startswith("bad at 5%: worse than random on holdout_nll by 0.")
    low, high = re.search(r"interval ([\d.]+) to ([\d.]+),", said["bad"]).groups()
    assert float(low) < 0.6 < float(high)  # how much worse, and no sign beside the word
    same = next(one for one in compare_arms(outcomes, settings).against if one.arm == "same")
    way = "better" if same.effect > 0 else "worse"
    words = f"not distinguishable from random on holdout_nll: the mean is {way} by {abs(same.effect):.4g} nats/token"
    assert words in said["same"] and "interval of the gain -" in said["same"]
    assert "would have been seen with a power of 80 %" in said["same"] and "needed" in said["same"]
