"""Counts against the published reviews, the rule case by case, the interval against a slow twin."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import chi2

from tithe.errors import DataError, SettingsError
from tithe.lab.judge.tally import Review, ReviewScores, Tally, judge_measured, read_reviews, score_interval, tally
from tithe.records import Problem


@pytest.mark.shared
@pytest.mark.parametrize(("name", "counts"), [("vicuna", (44, 15, 21)), ("koala", (85, 36, 59))])
def test_the_published_reviews(shared: Path, name: str, counts: tuple[int, int, int]) -> None:
    found = tally(read_reviews(shared / "data" / "judge_logs" / f"{name}_reviews_gpt4.json"))
    assert (found.win, found.tie, found.loss) == counts and found.no_verdict == 0
    assert found.win_rate == 1 + (counts[0] - counts[2]) / sum(counts)


UP, EVEN, DOWN = ReviewScores(8, 7), ReviewScores(5, 5), ReviewScores(2, 9)


@pytest.mark.parametrize(
    ("given_", "swapped", "value"),
    [
        (UP, UP, 1),
        (UP, EVEN, 1),
        (EVEN, UP, 1),
        (UP, DOWN, 0),  # conflicting orders, however far apart the scores
        (DOWN, UP, 0),
        (EVEN, EVEN, 0),
        (EVEN, DOWN, -1),
        (DOWN, DOWN, -1),
    ],
)
def test_the_rule(given_: ReviewScores, swapped: ReviewScores, value: int) -> None:
    assert Review("x", given_, swapped).value == value


def test_a_missing_review_makes_no_tie() -> None:
    reviews = [Review("a", UP, Problem("empty")), Review("b", Problem("cut"), DOWN), Review("c", UP, UP)]
    found = tally(reviews)
    assert (found.win, found.tie, found.loss, found.no_verdict, found.n) == (1, 0, 0, 2, 1)
    assert found.why == {"empty": 1, "cut": 1} and found.win_rate == 2
    measured = judge_measured(reviews, "vicuna")
    assert measured.metric == "judge vicuna" and measured.items == ("c",) and measured.values.tolist() == [1.0]
    assert measured.problems == {"a": "empty", "b": "cut"}


def test_how_the_orders_go_together() -> None:
    pairs = [(UP, UP), (UP, DOWN), (UP, DOWN), (DOWN, UP), (EVEN, UP), (EVEN, EVEN)]
    found = tally([Review(str(i), *pair) for i, pair in enumerate(pairs)])
    assert found.orders == {"agree": 2, "first": 2, "second": 1, "else": 1}


def test_nothing_judged() -> None:
    found = tally([Review("a", Problem("x"), Problem("x"))])
    assert found.win_rate is None and found.interval is None and found.as_dict()["no_verdict"] == 1


# --------------------------------------------------------------------------------------------------------- interval


def twin(wins: int, ties: int, losses: int, level: float) -> tuple[float, float]:
    """The differences that a score test does not refuse, found by trying 2,001 of them; the likeliest share of losses
    under each by searching the likelihood, and the statistic as Pearson's chi-square over the three cells."""
    n, refused = wins + ties + losses, chi2.isf(1 - level, 1)
    kept = []
    for d in np.linspace(-1, 1, 2001)[1:-1]:
        low, high = max(0.0, -d), (1 - d) / 2

        def minus_log(q: float, d: float = d) -> float:
            cells = [(wins, q + d), (losses, q), (ties, 1 - 2 * q - d)]
            return -sum(k * np.log(max(p, 1e-300)) for k, p in cells if k)

        q = minimize_scalar(minus_log, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x
        variance = (2 * q + d - d * d) / n
        if ((wins - losses) / n - d) ** 2 <= refused * variance:
            kept.append(d)
    return min(kept), max(kept)


@pytest.mark.parametrize(
    ("counts", "level"),
    [((44, 15, 21), 0.95), ((3, 0, 0), 0.9), ((0, 7, 0), 0.95), ((1, 4, 6), 0.99), ((0, 2, 9), 0.95)],
)
def test_against_a_search(counts: tuple[int, int, int], level: float) -> None:
    low, high = twin(*counts, level)
    got = score_interval(*counts, level)
    assert got[0] == pytest.approx(max(low, -1), abs=1.1e-3) and got[1] == pytest.approx(min(high, 1), abs=1.1e-3)


def test_by_hand() -> None:
    # Ties alone: (n d)^2 = z^2 n d (1 - d), so d = z^2 / (n + z^2).
    z2 = 1.959963984540054**2
    assert score_interval(0, 20, 0) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)), abs=1e-9)
    # Wins alone, seen from below: q = 0 there, (n - n d)^2 = z^2 n d (1 - d), so d = n / (n + z^2).
    assert score_interval(20, 0, 0) == pytest.approx(((20 - z2) / (20 + z2), 1), abs=1e-9)


@given(wins=st.integers(0, 40), ties=st.integers(0, 40), losses=st.integers(0, 40))
def test_it_holds_the_estimate_and_has_a_width(wins: int, ties: int, losses: int) -> None:
    n = wins + ties + losses
    if n == 0:
        return
    low, high = score_interval(wins, ties, losses)
    assert -1 <= low <= (wins - losses) / n <= high <= 1 and high - low > 1e-3
    mirrored = score_interval(losses, ties, wins)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    wider = score_interval(wins, ties, losses, 0.99)
    assert wider[0] <= low and wider[1] >= high


@pytest.mark.slow
def test_it_covers_what_it_promises() -> None:
    """Exactly, by summing the trinomial over all outcomes of 25 prompts."""
    from scipy.stats import multinomial

    n = 25
    outcomes = [(w, n - w - c, c) for w, c in product(range(n + 1), repeat=2) if w + c <= n]
    limits = np.array([score_interval(*one) for one in outcomes])
    for p in [(0.3, 0.4, 0.3), (0.5, 0.3, 0.2), (0.8, 0.1, 0.1), (0.05, 0.9, 0.05), (0.95, 0.04, 0.01)]:
        chance, truth = multinomial.pmf(outcomes, n, p), p[0] - p[2]
        covered = chance[(limits[:, 0] <= truth) & (truth <= limits[:, 1])].sum()
        assert covered > 0.92, (p, covered)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 3)])
def test_no_interval_of_nothing(counts: tuple[int, int, int]) -> None:
    with pytest.raises(SettingsError, match="no interval"):
        score_interval(*counts)
    with pytest.raises(SettingsError, match="level"):
        score_interval(1, 1, 1, 95)


# ------------------------------------------------------------------------------------------------------------ files


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


CHERRY = {"text": "q", "scores": "[9.0, 8.5]", "scores_reverse": "[8.0, 9.0]", "review": "9 8.5"}


def test_layouts(tmp_path: Path) -> None:
    wrapped = read_reviews(write(tmp_path / "a.json", {"Meta_Info": {"dataset_name": "v"}, "data": [CHERRY]}))
    bare = read_reviews(write(tmp_path / "b.json", [CHERRY | {"scores": [9, 8.5]}]))
    assert wrapped == bare == [Review("record 1", ReviewScores(9, 8.5), ReviewScores(9, 8))]
    own = {"item": "x", "given": {"a": 1, "b": 2, "reply": "1 2"}, "swapped": {"problem": "empty", "reply": ""}}
    assert read_reviews(write(tmp_path / "c.jsonl", json.dumps(own))) == [
        Review("x", ReviewScores(1, 2), Problem("empty"))
    ]


def test_a_marked_failure_is_no_tie(tmp_path: Path) -> None:
    found = tally(read_reviews(write(tmp_path / "a.json", [CHERRY, CHERRY | {"scores": "[-1, -1]"}])))
    assert (found.win, found.no_verdict) == (1, 1)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"text": "q", "scores": "[9, 8]"}, "`scores_reverse` is missing: there is `text`, `scores`"),
        (CHERRY | {"scores": "nine"}, "`scores` is `nine`, it must be two numbers"),
        (CHERRY | {"scores_reverse": "[1, 2, 3]"}, "`scores_reverse` is `"),
        (CHERRY | {"scores": [True, 2]}, "`scores` is"),
        (CHERRY | {"scores": "[NaN, 2]"}, "`scores` is"),
        (CHERRY | {"scores": "[" * 100_000}, "`scores` is `[[[["),
        (CHERRY | {"scores": [10**400, 2]}, "`scores` is"),
        (CHERRY | {"scores": "[1e999, 2]"}, "`scores` is"),
        (CHERRY | {"scores": [[[1]], {}]}, "`scores` is"),
        ({"item": "x", "given": {"a": 10**400, "b": 2}, "swapped": {"a": 1, "b": 2}}, "`given` holds neither"),
        ({"item": "x", "given": {"problem": 5}, "swapped": {"a": 1, "b": 2}}, "`given` holds neither"),
        ({"item": "x" * 70_000, "given": {"problem": "no"}, "swapped": 5}, "`swapped` holds neither"),
        ({"prompt": "q"}, "`item` is missing"),
        ({"item": "x", "given": {"a": 1}, "swapped": {"a": 1, "b": 2}}, "`given` holds neither"),
        ({"item": 3, "given": {}, "swapped": {}}, "`item` is not a text"),
        ([1, 2], "it is not an object"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, record: Any, why: str) -> None:
    own = {"item": "x", "given": {"a": 1, "b": 2}, "swapped": {"a": 1, "b": 2}}
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [own, record])))
    with pytest.raises(DataError) as caught:
        read_reviews(path)
    assert f"{path}:2, record 2: " in str(caught.value) and why in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_reviews(tmp_path / "none.json")
    with pytest.raises(DataError, match="invalid JSON"):
        read_reviews(write(tmp_path / "a.jsonl", '{"item": "x", "given"'))
    own = {"item": "x", "given": {"a": 1, "b": 2}, "swapped": {"a": 1, "b": 2}}
    with pytest.raises(DataError, match="2 reviews of the prompt `x`"):
        read_reviews(write(tmp_path / "b.jsonl", "\n".join([json.dumps(own)] * 2)))


def test_the_numbers_of_a_tally() -> None:
    assert Tally(3, 1, 2).as_dict()["n"] == 6 and Tally(3, 1, 2).as_dict()["interval"]["level"] == 0.95


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10), st.integers(1, 10)), min_size=1))
def test_the_other_side_sees_the_mirror_image(scores: list[tuple[int, int, int, int]]) -> None:
    one = tally([Review(str(i), ReviewScores(a, b), ReviewScores(c, d)) for i, (a, b, c, d) in enumerate(scores)])
    other = tally([Review(str(i), ReviewScores(d, c), ReviewScores(b, a)) for i, (a, b, c, d) in enumerate(scores)])
    assert (one.win, one.tie, one.loss) == (other.loss, other.tie, other.win)
