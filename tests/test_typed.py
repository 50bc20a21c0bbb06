"""Strict settings: values of other types, empty names and numbers that are too large are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tithe.errors import SettingsError
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.experiment.settings import ExperimentSettings, check_judge
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.tune.settings import TrainingRecipe, TuneSettings
from tithe.settings import ScoreSettings, SelectSettings, Settings
from tithe.typed import LARGEST

WRONG: list[tuple[str, Any, str]] = [
    ("limit", True, "whole number"),
    ("limit", 5.0, "whole number"),
    ("limit", "5", "whole number"),
    ("limit", 0, "at least 1"),
    ("limit", LARGEST + 1, "too large"),
    ("limit", 10**400, "too large"),
    ("limit", [5], "whole number"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "below 4294967296"),
    ("seed", True, "whole number"),
    ("strict", 1, "`true` or `false`"),
    ("strict", "maybe", "`true` or `false`"),
    ("exclude_similarity", float("nan"), "finite"),
    ("exclude_similarity", float("inf"), "finite"),
    ("exclude_similarity", True, "a number"),
    ("exclude_similarity", -2.0, "between -1 and 1"),
    ("model", "", "`model` is empty"),
    ("model", " \t", "`model` is empty"),
    ("model", 5, "text"),
    ("model", "a\0b", "NUL"),
    ("dataset", "", "`dataset` is empty"),
    ("scorer", ["ifd", ""], "`scorer` is empty"),
    ("scorer", 5, "list"),
    ("scorer", [], "empty list"),
    ("turns", True, "'last' or 'all'"),
    ("keep", True, "text or a whole number or a number"),
    ("drop_contaminated", [""], "`drop_contaminated` is empty"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_value_is_not_taken_for_another(name: str, value: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SelectSettings.of({"dataset": "d", name: value})
    assert f"`{name}" in str(caught.value) and said in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_meant_is_taken() -> None:
    taken = SelectSettings.of({"dataset": "d", "strict": "yes", "eos": "Off", "drop": ["a > 1"], "keep": 0.05})
    assert (taken.strict, taken.eos, taken.drop, taken.keep) == (True, False, ("a > 1",), 0.05)
    assert ScoreSettings.of({"dataset": "d", "alone_header": "", "exclude_similarity": 1}).exclude_similarity == 1.0
    assert SelectSettings.of({"dataset": "d", "drop": [], "drop_contaminated": []}).drop == ()
    numbers = ScoreSettings.of({"dataset": "d", "limit": np.int64(5), "exclude_similarity": np.float32(0.5)})
    assert (numbers.limit, numbers.exclude_similarity) == (5, 0.5) and type(numbers.limit) is int
    assert HeadSettings.of({"dataset": "d", "high_tier": [1, True, "a,b"]}).high_tier == ("1", "true", "a", "b")


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (TrainingRecipe, {"lora_target_modules": -5}, "list"),
        (TrainingRecipe, {"max_steps": -5}, "-1"),
        (TrainingRecipe, {"packing": 1}, "`true`"),
        (TrainingRecipe, {"num_train_epochs": float("nan")}, "finite"),
        (TrainingRecipe, {"train_batch_size": 2.5}, "whole number"),
        (TuneSettings, {"dataset": "d", "limit": -1}, "at least 1"),
        (TuneSettings, {"dataset": "d", "recipe": ""}, "`recipe` is empty"),
        (EvaluateSettings, {"model": "m", "tasks": "x", "limit": True}, "whole number"),
        (ExperimentSettings, {"seeds": 1_000_000_000}, "at most 1,000 seeds"),
        (ExperimentSettings, {"seeds": 10**300}, "too large"),
        (ExperimentSettings, {"seeds": [[1], 2, 3]}, "whole numbers"),
        (ExperimentSettings, {"seeds": [True, 2, 3]}, "whole numbers"),
        (ExperimentSettings, {"seeds": [-1, 2, 3]}, "at least 0"),
        (ExperimentSettings, {"arms": [["a"]]}, "name at least one arm"),
        (ExperimentSettings, {"arms": ["random", "random"]}, "named twice"),
        (ExperimentSettings, {"arms": {"random": None, "x": {"allow_fewer": 3}}}, "`true` or `false`"),
        (ExperimentSettings, {"arms": {"random": None, "x": {"file": 3}}}, "text"),
        (ExperimentSettings, {"arms": {"random": None, "x": {"max-length": 1, "max_length": 2}}}, "twice"),
        (ExperimentSettings, {"budgets": True}, "budget"),
        (ExperimentSettings, {"budgets": [["5%"]]}, "budget"),
        (ExperimentSettings, {"holdout": -5}, "at least 1"),
        (ExperimentSettings, {"parallel": 0}, "at least 1"),
        (ExperimentSettings, {"training": [1]}, "`key: value`"),
    ],
)
def test_everywhere(kind: type[Settings], values: dict[str, Any], said: str) -> None:
    base = {"dataset": "d", "model": "m", "arms": {"random": None}} if kind is ExperimentSettings else {}
    with pytest.raises(SettingsError) as caught:
        kind.of({**base, **values})
    assert said in str(caught.value)


def test_an_arm_that_says_no_means_no() -> None:
    given = {"dataset": "d", "model": "m", "arms": {"random": None, "x": {"allow_fewer": "no"}}}
    assert [arm.allow_fewer for arm in ExperimentSettings.of(given).arms] == [False, False]


@pytest.mark.parametrize(
    "judge",
    [
        {"judge": "pocket", "prompts": 5},
        {"judge": "pocket", "prompts": [""]},
        {"judge": "pocket", "prompts": "p.jsonl", "answers": 5},
        {"judge": "pocket", "prompts": "p.jsonl", "answers": {"max_new_tokens": True}},
    ],
)
def test_a_judge_is_checked_before_anything_is_trained(judge: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="cannot be"):
        check_judge(judge, "pocket")
