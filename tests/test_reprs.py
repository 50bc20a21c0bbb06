"""The repr of an object is one line, however much it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tithe
from tithe.errors import SettingsError, brief
from tithe.lab.judge.prompt_answers import AnswerResult
from tithe.lab.tiers.building import TierResult
from tithe.lab.tune.tune import TuneResult
from tithe.records import Example, Message, Scores, Selection
from tithe.settings import SelectSettings

LINE = 250  # characters: a screen line, and names in it
LONG = "word " * 50_000
MANY = [f"{i:016x}" for i in range(5_000)]


def objects() -> list[Any]:
    prompt = (Message("system", LONG), Message("user", f"{LONG}\n{LONG}"))
    example = Example(MANY[0], 0, 2, prompt, Message("assistant", LONG, LONG), columns={"x": LONG}, where="a:1")
    values = np.arange(5_000.0)
    values[0] = np.nan
    return [
        example,
        *prompt,
        Scores(MANY, values, {0: LONG}, {"response_tokens": values}, "ifd"),
        Scores([], np.empty(0), by="ifd"),
        Selection(MANY[:10], dict.fromkeys(MANY[10:], LONG), "top"),
        SelectSettings(dataset=LONG, model="m", scorer=tuple(MANY)),
        TierResult(MANY, {"x": LONG}),  # type: ignore[arg-type]
        AnswerResult(Path("a"), {"x": LONG}),
        TuneResult(Path("a"), {"x": LONG}),
    ]


@pytest.mark.parametrize("one", objects(), ids=lambda one: type(one).__name__)
def test_a_line(one: Any) -> None:
    for text in (repr(one), str(one)):
        assert len(text) <= LINE and "\n" not in text, text[: 2 * LINE]


def test_what_is_said() -> None:
    scores = Scores(["a", "b", "c"], np.array([1.0, np.nan, 4.0]), {1: "no token"}, by="ifd")
    assert repr(scores) == "<Scores: ifd of 3 examples, 1 to 4, median 2.5, 1 without>"
    assert repr(Selection(["a"], {"b": "below the budget"}, "top")) == "<Selection: 1 kept, 1 dropped by top>"
    settings = SelectSettings(dataset="d", model="m")
    assert repr(settings) == "SelectSettings(dataset='d', model='m')"
    assert brief("a\n b" * 100, 10) == "a ba ba b…"


def test_results_of_a_run() -> None:
    result = tithe.select("starter", scorer="length", model="pocket", keep=5)
    plan = tithe.plan("starter", scorer="length", model="pocket")
    for one in (result, result.scored, result.scores, result.selection, result.scored.dataset, plan):
        assert len(repr(one)) <= LINE and "\n" not in repr(one)
        assert len(str(one)) <= 4 * LINE and str(one).count("\n") <= 12


@pytest.mark.parametrize("given", [{LONG}, 5, None, {"a": LONG}, iter([]), b"x"], ids=type)
def test_records_where_a_path_is_wanted(given: Any) -> None:
    for call in (tithe.load, tithe.plan, tithe.score, tithe.select):
        with pytest.raises(SettingsError, match=r"a data set is a path.* not an? ") as caught:
            call(given)
        assert len(str(caught.value)) <= LINE and type(given).__name__ in str(caught.value)


def test_a_value_of_a_setting_is_not_quoted_whole() -> None:
    for value in (LONG, [1] * 10_000):
        with pytest.raises(SettingsError) as caught:
            SelectSettings.of({"dataset": "d", "truncation": value})
        assert len(str(caught.value)) <= LINE
