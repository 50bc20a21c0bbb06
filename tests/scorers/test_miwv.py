"""MIWV's own: whom it shows, what it makes of two likelihoods, and what it leaves without a score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.scorers.bench import Bench, angle, example, nll
from tithe.errors import DataError, SettingsError
from tithe.records import Example, Nll, Problem
from tithe.scorers.miwv import MIWV
from tithe.scorers.shots import Shots

NAMES = "abcd"
# a and b are 10 degrees apart, b and c 20, d is far from all.
VECTORS = {"a": angle(0), "b": angle(10), "c": angle(30), "d": angle(120)}


def bench(names: str = NAMES, **more: object) -> Bench:
    return Bench([example(name, i) for i, name in enumerate(names)], vectors=VECTORS, **more)  # type: ignore[arg-type]


def shown(scorer: MIWV, bench: Bench) -> dict[str, str | list[str]]:
    """Whom each record is shown, or why it is shown nobody."""
    assert scorer.found is not None
    found = {one.id: scorer.found.of(one) for one in bench.examples}
    return {id_: got.reason if isinstance(got, Problem) else [one.id for one in got] for id_, got in found.items()}


def test_the_nearest_other_is_shown() -> None:
    made = bench()
    assert shown(MIWV().prepare(made), made) == {"a": ["b"], "b": ["a"], "c": ["b"], "d": ["c"]}
    assert made.kept["neighbours"]["neighbour"] == ["b", "a", "b", "c"]
    assert made.kept["neighbours"]["similarity"] == pytest.approx([math.cos(math.radians(d)) for d in (10, 10, 20, 90)])
    assert made.notes == {"same_prompt_neighbours": 0, "without_neighbour": 0} and made.said == []


def test_of_several_the_nearest_stands_last() -> None:
    made = bench()
    scorer = MIWV(shots=2).prepare(made)
    assert shown(scorer, made) == {"a": ["c", "b"], "b": ["c", "a"], "c": ["a", "b"], "d": ["b", "c"]}
    assert made.kept["neighbours"]["rank"].tolist() == [1, 2] * 4
    asks = scorer.asks(made.examples[0])
    assert [one.id for one in asks["one"].spec.shots] == ["c", "b"] and asks["zero"].spec.shots == ()


def test_ties_go_to_the_lowest_index() -> None:
    made = Bench([example(name) for name in "cba"], vectors={"a": (1, 0), "b": (1, 0), "c": (1, 0)})
    assert shown(MIWV().prepare(made), made) == {"c": ["b"], "b": ["c"], "a": ["c"]}
    assert made.notes["same_prompt_neighbours"] == 3
    assert made.said == [
        "note: the nearest neighbour of every record has the same prompt, and may give the answer away; "
        "`--exclude-similarity 0.999` skips such neighbours"
    ]


def test_what_is_too_alike_is_passed_over() -> None:
    made = bench()
    near = math.cos(math.radians(15))
    scorer = MIWV(exclude_similarity=near).prepare(made)
    assert shown(scorer, made) == {"a": ["c"], "b": ["c"], "c": ["b"], "d": ["c"]}
    scorer = MIWV(exclude_similarity=math.cos(math.radians(95))).prepare(made)
    why = "no neighbour: fewer than 1 below the similarity of -0.0871557"
    assert shown(scorer, made) == {"a": ["d"], "b": ["d"], "c": why, "d": ["b"]}
    assert made.notes["without_neighbour"] == 1
    left = scorer.asks(made.examples[2])
    assert set(left) == {"zero"} and scorer.score(made.examples[2], {"zero": nll(1)}) == Problem(why)


def test_a_pool_is_another_data_set_with_ids_of_its_own() -> None:
    """Content that both hold is never shown before itself, however often the pool has it."""
    pool = [example("c"), example("a"), example("a-1"), example("b")]
    made = bench(pool=pool)
    scorer = MIWV(shot_pool="x").prepare(made)
    assert shown(scorer, made) == {"a": ["pool:b"], "b": ["pool:a"], "c": ["pool:b"], "d": ["pool:c"]}
    copies = Bench([example("a"), example("a-1")], vectors=VECTORS, pool=pool)
    assert shown(MIWV(shot_pool="x").prepare(copies), copies) == {"a": ["pool:b"], "a-1": ["pool:b"]}
    alone = Bench([example("a"), example("b")], vectors=VECTORS, pool=[example("a")])
    why = "no neighbour: fewer than 1 in the shot pool"
    assert shown(MIWV(shot_pool="x").prepare(alone), alone) == {"a": why, "b": ["pool:a"]}


def test_a_prompt_without_a_vector_has_no_neighbour() -> None:
    made = Bench([example(name) for name in "ab"], vectors={"a": (1, 0), "b": (0, 0)})
    why = "no neighbour: the encoder makes nothing of its prompt"
    assert shown(MIWV().prepare(made), made)["b"] == why


@pytest.mark.parametrize(
    ("names", "scorer", "message"),
    [
        ("a", MIWV(), "1 worked example is to be shown, and besides a record itself there is none"),
        ("ab", MIWV(shots=2), "2 worked examples are to be shown, and besides a record itself there is only 1"),
        ("abc", MIWV(shots=4), "4 worked examples are to be shown, and besides a record itself there are 2"),
        ("abc", MIWV(shots=2, shot_pool="x.jsonl"), "in the shot pool `x.jsonl` there is only 1"),
    ],
)
def test_too_few_to_choose_from(names: str, scorer: MIWV, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scorer.prepare(bench(names, pool=[example("a")]))


@pytest.mark.parametrize("settings", [{"shots": 0}, {"exclude_similarity": -1.0}, {"exclude_similarity": 1.01}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        MIWV(**settings)  # type: ignore[arg-type]


def prepared(one: Example) -> MIWV:
    return MIWV(found=Shots({one.id: (example("z"),)}))


def test_the_difference_of_means() -> None:
    """2.5 - 2.0: the worked example makes each token half a nat harder, so the score is above 0."""
    one = example("a")
    assert prepared(one).score(one, {"zero": nll(2.0), "one": nll(2.5)}) == pytest.approx(0.5)
    assert prepared(one).score(one, {"zero": nll(2.5), "one": nll(2.0)}) == pytest.approx(-0.5)


def test_a_first_token_without_context_counts_in_neither() -> None:
    """Three tokens of 4, 1 and 1 nats after the shot; zero-shot, the first has nothing before it."""
    one = example("a")
    zero, after = Nll(3.0, 2, math.nan), Nll(6.0, 3, 4.0)
    assert prepared(one).score(one, {"zero": zero, "one": after}) == pytest.approx(2 / 2 - 3 / 2)


def test_nothing_scored_and_nothing_finite() -> None:
    one = example("a")
    assert isinstance(prepared(one).score(one, {"zero": nll(1, 0), "one": nll(1, 0)}), Problem)
    assert prepared(one).score(one, {"zero": nll(1), "one": nll(np.inf)}) == Problem("miwv is not finite")
