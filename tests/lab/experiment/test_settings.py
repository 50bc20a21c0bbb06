"""Arms, budgets and seeds from YAML: what is understood, and what is refused with a sentence."""

from __future__ import annotations

import pytest
import yaml

from tithe.errors import SettingsError
from tithe.lab.experiment.conduct import base_arm
from tithe.lab.experiment.settings import ExperimentSettings, read_experiment

BASE = {"dataset": "d.jsonl", "model": "m", "arms": {"ifd": None, "random": None}}


def of(**more):
    return ExperimentSettings.of({**BASE, **more})


def refused(**more):
    with pytest.raises(SettingsError) as caught:
        of(**more)
    return f"{caught.value} | {caught.value.hint}"


def test_arms_in_all_their_forms():
    arms = {
        "ifd": None,
        "cherry": {"scorer": "ifd", "drop": []},
        "short": "length",
        "two": "superfiltering:50% -> ifd:20%",
        "both": "2*rank(ifd(same_tokens=false)) + rank(length)",
        "random": None,
        "random-like": {"random_like": "cherry"},
        "mine": {"file": "kept-{budget}.jsonl"},
        "full": None,
        "base": None,
    }
    found = {arm.name: arm for arm in of(arms=arms).arms}
    assert found["ifd"].select == {"scorer": "ifd"} and found["short"].select == {"scorer": "length"}
    assert found["two"].select == {"pipeline": "superfiltering:50% -> ifd:20%"}
    assert found["both"].select == {"scorer": ("ifd(same_tokens=false)", "length"), "by": "2*rank(ifd)+rank(length)"}
    assert found["random-like"].like == "cherry" and found["mine"].file == "kept-{budget}.jsonl"
    assert [name for name, arm in found.items() if arm.drawn] == ["random", "random-like"]
    assert [name for name, arm in found.items() if not arm.budgeted] == ["full", "base"]


@pytest.mark.parametrize(
    ("arms", "name"),
    [
        ({"ifd": None}, "base"),  # measured where it is not asked for
        ({"ifd": None, "base": None}, "base"),
        ({"base": {"scorer": "length"}, "base-2": "ifd"}, "base-3"),  # the names are taken by trained arms
    ],
)
def test_the_untrained_model_has_an_arm(arms, name):
    assert base_arm(of(arms={"random": None, **arms}).arms) == name


def test_random_like_takes_the_first_scored_arm(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**BASE, "arms": {"random": None, "random-like": None, "ifd": None}}))
    assert read_experiment(path, {}).arm("random-like").like == "ifd"


@pytest.mark.parametrize(("given", "seeds"), [(3, (0, 1, 2)), ([5, 7, 9, 11], (5, 7, 9, 11)), (5, (0, 1, 2, 3, 4))])
def test_seeds(given, seeds):
    assert of(seeds=given).seeds == seeds


@pytest.mark.parametrize(("given", "budgets"), [("1%,5%,100%", ("1%", "5%", "100%")), (500, ("500",))])
def test_budgets(given, budgets):
    assert of(budgets=given).budgets == budgets


def test_flags_go_first(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**BASE, "budgets": ["5%"]}))
    assert read_experiment(path, {"budgets": "1%,2%", "seeds": None}).budgets == ("1%", "2%")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"seed": 3}, "did you mean `seeds`?"),
        ({"seeds": 2}, "at least 3 different seeds"),
        ({"seeds": [1, 1, 1]}, "at least 3 different seeds"),
        ({"budgets": "0%"}, "keeps nothing"),
        ({"budgets": "5%,5%"}, "name each budget once"),
        ({"budgets": "5%,0.05"}, "name each budget once"),
        ({"arms": {"random": None, "a/b": "length"}}, "`a/b` cannot be the name of an arm"),
        ({"arms": {"random": None, "..": "length"}}, "`..` cannot be the name of an arm"),
        ({"arms": {"random": None, "": "length"}}, "`` cannot be the name of an arm"),
        ({"budgets": "much"}, "cannot be read"),
        ({"arms": {}}, "name at least one arm"),
        ({"arms": {"ifd": None}}, "`against` names `random`, which is not an arm"),
        ({"arms": {"random": None, "full": None}, "against": "full"}, "`full`, which has no budget"),
        ({"arms": {"random": None, "x": {"scorer": "ifd", "selecter": "top"}}}, "did you mean `selector`?"),
        ({"arms": {"random": None, "x": {"keep": "5%"}}}, "cannot have a `keep` of its own"),
        ({"arms": {"random": None, "x": {"scorer": "ifd", "recipe": "alpaca"}}}, "then the recipes are compared"),
        ({"arms": {"random": None, "x": {"file": "a", "scorer": "ifd"}}}, "other keys beside `file`: scorer"),
        ({"arms": {"random": None, "x": {"random_like": "y"}}}, "repeats the lengths of `y`"),
        ({"arms": {"random": None, "x": 5}}, "cannot be `5`"),
        ({"truncation": "both"}, "`truncation` cannot be `both`"),
    ],
)
def test_refused(more, said):
    assert said in refused(**more)


def test_not_yaml(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("arms: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_experiment(path, {})
