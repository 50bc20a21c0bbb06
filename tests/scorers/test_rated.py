"""DEITA and SelectIT: what they ask, and what they make of the replies. Numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Message, Options, Problem
from tithe.scorers import deita, rated, selectit
from tithe.scorers.deita import DeitaScore
from tithe.scorers.selectit import SelectIT
from tithe.testing import FakeBench

USER, SYSTEM, REPLY, TOOL = "user", "system", "assistant", "tool"


def options(*probabilities: float) -> Options:
    with np.errstate(divide="ignore"):  # log 0 is meant
        return Options(np.log(np.array(probabilities, dtype=np.float32)))


def dialogue(*turns: tuple[str, str], name: str = "a") -> Example:
    *before, last = [Message(role, content) for role, content in turns]
    return Example(name, 0, len(before), tuple(before), last)


TWO = dialogue((SYSTEM, "Be kind."), (USER, "Hi"), (REPLY, "Hello"), (USER, "Sum {1}?"), (REPLY, "Two"))


def questions(scorer: DeitaScore | SelectIT, one: Example) -> dict[str, str]:
    return {name: ask.spec.question for name, ask in scorer.asks(one).items()}


# What both share


def test_turns_of_a_dialogue() -> None:
    assert rated.exchanges(TWO) == [("Hi", "Hello"), ("Sum {1}?", "Two")]
    called = dialogue((USER, "Time?"), (REPLY, ""), (TOOL, "12:00"), (REPLY, "Noon."))
    assert rated.exchanges(called) == [("Time?", "Noon.")]  # a mere call of a tool is no answer
    assert rated.exchanges(dialogue((USER, "Time?"), (REPLY, ""))) == [("Time?", "")]


def test_the_mass_is_on_the_average_of_the_questions() -> None:
    assert rated.mass({"a": options(0.1, 0.2), "b": options(0.3, 0.4)}) == pytest.approx(0.5)
    assert rated.mass({"a": Options(np.array([0, -20], dtype=np.float32))}) == 1.0  # rounding is no mass


def test_asks_name_replies_and_readout() -> None:
    (ask, *_) = SelectIT().asks(TWO).values()
    assert ask.readout == "options:1,2,3,4,5" and ask.spec.options == ("1", "2", "3", "4", "5")
    assert ask.spec.kind == "rated" and ask.spec.example == TWO
    assert {one.readout for one in DeitaScore().asks(TWO).values()} == {"options:1,2,3,4,5,6"}


# SelectIT


def test_selectit_of_one_prompt() -> None:
    """P' = .1 .1 .2 .5 .1: the rating is 4, the others lie .4 .4 .3 .4 behind, a quarter of their sum is .375."""
    assert selectit.certain_rating(options(0.01, 0.01, 0.02, 0.05, 0.01).shares) == pytest.approx(4 * 0.375)
    assert selectit.certain_rating(options(0, 0, 0, 0, 1).shares) == pytest.approx(5)
    assert selectit.certain_rating(options(*[0.01] * 5).shares) == pytest.approx(0)


def test_selectit_over_five_prompts() -> None:
    """Sure of 5, 4, 3, 5 and 3: the mean is 4, the standard deviation the root of .8."""
    sure = {f"rating{i}": options(*(float(k == best) for k in range(1, 6))) for i, best in enumerate((5, 4, 3, 5, 3))}
    spread = math.sqrt(0.8)
    assert SelectIT().score(TWO, sure) == pytest.approx(4 / (1 + 0.2 * spread))
    assert SelectIT(alpha=0).score(TWO, sure) == pytest.approx(4)
    assert SelectIT().more(TWO, sure) == pytest.approx({"rating": 4, "spread": spread, "mass": 1})


def test_selectit_asks_five_different_questions_with_all_that_was_said() -> None:
    asked = questions(SelectIT(), TWO)
    assert len(set(asked.values())) == len(asked) == 5
    for one in asked.values():
        assert "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Sum {1}?" in one and "Two" in one
        assert one.endswith("rating is:")
    alone = dialogue((USER, "Name {x}."), (REPLY, "{y}"))
    assert all("Instruction:\nName {x}.\n\nResponse:\n{y}\n" in one for one in questions(SelectIT(), alone).values())
    assert all("1" in one and "5" in one for one in selectit.OPENINGS)


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_selectit_refuses(alpha: float) -> None:
    with pytest.raises(SettingsError, match="`alpha` must be at least 0"):
        SelectIT(alpha=alpha)


# DEITA

C0, C1 = options(0.1, 0.1, 0, 0, 0, 0), options(0, 0, 0, 0.3, 0, 0)  # 1.5 and 4
Q0, Q1 = options(0, 0.2, 0, 0, 0, 0.2), options(0, 0, 0.01, 0, 0, 0)  # 4 and 3
ANSWERS: dict[str, Answer] = {"complexity0": C0, "quality0": Q0, "complexity1": C1, "quality1": Q1}


def test_deita_multiplies_by_turn_and_sums() -> None:
    assert DeitaScore().score(TWO, ANSWERS) == pytest.approx(1.5 * 4 + 4 * 3)
    assert DeitaScore(part="complexity").score(TWO, ANSWERS) == pytest.approx(5.5)
    assert DeitaScore(part="quality").score(TWO, ANSWERS) == pytest.approx(7)
    more = DeitaScore().more(TWO, ANSWERS)
    assert more == pytest.approx({"complexity": 2.75, "quality": 3.5, "mass": (0.2 + 0.3 + 0.4 + 0.01) / 4})
    assert set(DeitaScore(part="quality").more(TWO, ANSWERS)) == {"quality", "mass"}


def test_deita_asks_in_the_words_that_the_scorer_models_know() -> None:
    asked = questions(DeitaScore(), TWO)
    assert list(asked) == ["complexity0", "quality0", "complexity1", "quality1"]
    assert asked["complexity1"] == (
        "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
        "##Query: Sum {1}?  \n##Complexity: "
    )
    assert asked["quality0"] == (
        "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question."
        " \n #Question#:\nHi\n#Response#:\nHello \n##Quality: "
    )
    assert list(questions(DeitaScore(part="quality"), TWO)) == ["quality0", "quality1"]
    assert list(questions(DeitaScore(complexity="x.parquet"), TWO)) == ["quality0", "quality1"]


class Fixed(FakeBench):
    """C0, C1 and Q0, Q1 for the turns of `TWO`; no answer about `lost`."""

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        def one(name: str, ask: Ask) -> Answer | Problem:
            return Problem("too long") if ask.spec.example.id == "lost" else ANSWERS[name]

        return [{name: one(name, ask) for name, ask in each.items()} for each in asks]


@pytest.mark.parametrize("first", ["complexity", "quality"])
def test_two_models_give_what_one_would(first: str) -> None:
    """What the first run keeps is what the second one reads; the product is still taken turn by turn."""
    examples = [TWO, replace(TWO, id="b"), replace(TWO, id="lost")]
    earlier, later = Fixed(examples), Fixed(examples)
    DeitaScore(part=first).prepare(earlier)  # type: ignore[arg-type]
    table = earlier.kept[first]
    assert table["id"] == ["a", "a", "b", "b"] and table["turn"].tolist() == [0, 1, 0, 1]
    later.earlier = {name: list(column)[::-1] for name, column in table.items()}  # in any order
    ready = DeitaScore(**{first: "table.parquet"}).prepare(later)
    rest = {name: one for name, one in ANSWERS.items() if not name.startswith(first)}
    assert ready.score(TWO, rest) == pytest.approx(1.5 * 4 + 4 * 3)
    assert {"complexity", "quality"} <= set(ready.more(TWO, rest))
    assert later.said == [f"note: `table.parquet` has no {first} of 1 of 3 records"]
    lost = ready.score(examples[2], rest)
    assert lost == Problem(f"no {first} in the earlier table: 0 turns of 2") and "mass" in ready.more(examples[2], rest)
    shorter = ready.score(replace(dialogue((USER, "Hi"), (REPLY, "Hello")), id="b"), rest)
    assert shorter == Problem(f"no {first} in the earlier table: 2 turns of 1")


def test_tables_that_say_nothing_of_it() -> None:
    bench = Fixed([TWO], earlier={"id": ["a"], "turn": [0], "quality": [3.0]})
    with pytest.raises(DataError, match=r"`t\.parquet` has no column `complexity`, only `id`, `turn`, `quality`"):
        DeitaScore(complexity="t.parquet").prepare(bench)
    bench.earlier = {"id": ["z"], "turn": [0], "complexity": [3.0]}
    with pytest.raises(DataError, match=r"`t\.parquet` is about other records: it has none of the 1 here"):
        DeitaScore(complexity="t.parquet").prepare(bench)


@pytest.mark.parametrize(
    "settings",
    [{"part": "all"}, {"complexity": "a", "quality": "b"}, {"part": "quality", "complexity": "a"}],
)
def test_deita_refuses(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        DeitaScore(**settings)  # type: ignore[arg-type]


def test_six_replies_are_worth_one_to_six() -> None:
    assert deita.expected({"q": options(0, 0, 0, 0, 0, 0.1)}, "q") == pytest.approx(6)
    assert deita.expected({"q": options(*[0.1] * 6)}, "q") == pytest.approx(3.5)
