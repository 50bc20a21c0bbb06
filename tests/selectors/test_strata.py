from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.errors import SettingsError
from tithe.records import Scores
from tithe.selectors.budget import Budget, interleave, quotas
from tithe.selectors.rank import Stratified


def scores_of(values, source, **columns):
    values = np.asarray(values, dtype=float)
    problems = {int(i): "no response token left" for i in np.flatnonzero(np.isnan(values))}
    ids = [f"e{i}" for i in range(len(values))]
    cells = np.empty(len(source), dtype=object)
    cells[:] = source
    return Scores(ids, values, problems, {"source": cells, **{k: np.asarray(v) for k, v in columns.items()}})


def mix(scores, selection):
    place = {id_: i for i, id_ in enumerate(scores.ids)}
    return Counter(scores.columns["source"][place[id_]] for id_ in selection.kept)


def test_quotas_follow_the_input():
    scores = scores_of(np.arange(100.0), ["a"] * 50 + ["b"] * 30 + ["c"] * 20)
    selection = Stratified("source").select(scores, Budget.parse("10%"))
    assert mix(scores, selection) == {"a": 5, "b": 3, "c": 2}
    best = [*range(45, 50), *range(77, 80), *range(98, 100)]
    assert selection.kept == [f"e{i}" for i in best]
    assert selection.reasons() == {"below its stratum's quota": 90}


def test_largest_remainder_by_hand():
    """7 rows over 50 : 30 : 20 are 3.5, 2.1 and 1.4: 3, 2, 1 and the one left to the largest remainder."""
    assert quotas(7, {"a": 50, "b": 30, "c": 20}, {"a": 50, "b": 30, "c": 20}) == {"a": 4, "b": 2, "c": 1}


def test_of_equal_remainders_the_larger_stratum_goes_first_then_the_name():
    assert quotas(2, {"a": 1, "b": 3}, {"a": 1, "b": 3}) == {"a": 0, "b": 2}  # 0.5 and 1.5
    assert quotas(1, {"b": 2, "a": 2}, {"b": 2, "a": 2}) == {"b": 0, "a": 1}


def test_a_full_stratum_passes_the_rest_on():
    assert quotas(60, {"a": 1, "b": 1, "c": 1}, {"a": 3, "b": 100, "c": 21}) == {"a": 3, "b": 36, "c": 21}
    assert quotas(1000, {"a": 9, "b": 1}, {"a": 3, "b": 4}) == {"a": 3, "b": 4}
    assert quotas(5, {"a": 9, "b": 1}, {"a": 0, "b": 4}) == {"a": 0, "b": 4}


def test_unscored_examples_count_for_the_size_of_the_input_and_not_of_what_is_left():
    values = np.arange(20.0)
    values[5:10] = np.nan
    scores = scores_of(values, ["a"] * 10 + ["b"] * 10)
    assert mix(scores, Stratified("source").select(scores, Budget.parse(6))) == {"a": 3, "b": 3}
    assert mix(scores, Stratified("source").select(scores, Budget.parse(6, of="kept"))) == {"a": 2, "b": 4}
    assert mix(scores, Stratified("source").select(scores, Budget.parse(15))) == {"a": 5, "b": 10}


def test_equal_shares():
    scores = scores_of(np.arange(100.0), ["a"] * 90 + ["b"] * 8 + ["c"] * 2)
    selection = Stratified("source", share="equal").select(scores, Budget.parse(12))
    assert mix(scores, selection) == {"a": 5, "b": 5, "c": 2}


def test_missing_values_are_a_stratum_and_its_name_is_not_taken():
    scores = scores_of(np.arange(8.0), [None, None, float("nan"), None, "None", "None", "None", "None"])
    kept = Stratified("source").select(scores, Budget.parse(4)).kept
    assert kept == ["e2", "e3", "e6", "e7"]


def test_cells_of_any_kind_are_strata():
    scores = scores_of(np.arange(8.0), [["x"], ["x"], {"k": 1}, {"k": 1}, 1, 1, "1", "1"])
    assert Stratified("source").select(scores, Budget.parse(4)).kept == ["e1", "e3", "e5", "e7"]


def test_the_order_inside():
    scores = scores_of([1, 2, 3, 4, 5, 6], ["a", "a", "a", "b", "b", "b"])
    assert Stratified("source", inner="bottom").select(scores, Budget.parse(2)).kept == ["e0", "e3"]
    drawn = {
        tuple(Stratified("source", inner="random", seed=s).select(scores, Budget.parse(2)).kept) for s in range(20)
    }
    assert len(drawn) > 3
    assert all(int(a[1]) < 3 <= int(b[1]) for a, b in drawn)


def test_an_unknown_column_is_suggested():
    with pytest.raises(SettingsError, match="no column `sourse`") as caught:
        Stratified("sourse").select(scores_of([1.0], ["a"]), Budget.parse(1))
    assert caught.value.hint == "did you mean `source`?"


def test_tokens_are_spent_over_the_strata_in_turn():
    scores = scores_of(np.arange(9.0), ["a"] * 6 + ["b"] * 3, response_tokens=[10] * 9)
    selection = Stratified("source").select(scores, Budget.parse("60-tokens"))
    assert mix(scores, selection) == {"a": 4, "b": 2}


def test_interleave_gives_every_front_the_mix():
    order = interleave({"a": list(range(60)), "b": list(range(60, 90)), "c": list(range(90, 100))})
    for front in range(1, 101):
        counts = Counter("a" if i < 60 else "b" if i < 90 else "c" for i in order[:front])
        assert all(abs(counts[label] - front * share) <= 1.5 for label, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)))


weights = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 40), min_size=1, max_size=6)


@given(weights, st.integers(0, 200), st.data())
def test_quotas_add_up_fit_and_are_near_their_share(sizes, rows, data):
    room = {label: data.draw(st.integers(0, size)) for label, size in sizes.items()}
    got = quotas(rows, sizes, room)
    assert got.keys() == sizes.keys()
    assert sum(got.values()) == min(rows, sum(room.values()))
    assert all(0 <= got[label] <= room[label] for label in sizes)
    total = sum(sizes.values())
    for label, size in sizes.items():  # nobody gets less than the share rounded down, unless there is no room for it
        assert got[label] >= min(room[label], rows * size // total) or rows > total


@given(weights, st.integers(0, 200))
def test_quotas_do_not_depend_on_the_order_of_strata(sizes, rows):
    turned = dict(reversed(sizes.items()))
    assert quotas(rows, sizes, sizes) == quotas(rows, turned, turned)


def test_equal_turns_take_one_of_each_in_turn():
    assert interleave({"a": [1, 2, 3, 4], "b": [5], "c": [6, 7]}, equal=True) == [1, 5, 6, 2, 7, 3, 4]


def test_a_token_budget_in_equal_shares_is_spent_over_all_strata():
    columns = {"kind": np.array(["a"] * 8 + ["b", "c"], dtype=object), "response_tokens": np.full(10, 10.0)}
    scores = Scores([str(i) for i in range(10)], np.arange(10.0), {}, columns)
    selection = Stratified(by="kind", share="equal").select(scores, Budget.parse("30-tokens"))
    assert list(selection.kept) == ["7", "8", "9"]
    assert selection.reasons() == {"below the budget": 7}
