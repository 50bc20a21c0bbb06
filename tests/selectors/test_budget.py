from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.errors import SettingsError
from tithe.records import Scores
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top


def scores_of(values, **columns):
    values = np.asarray(values, dtype=float)
    problems = {int(i): "no response token left" for i in np.flatnonzero(np.isnan(values))}
    ids = [f"e{i}" for i in range(len(values))]
    return Scores(ids, values, problems, {name: np.asarray(column) for name, column in columns.items()})


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("5%", "share", Fraction(5, 100)),
        (" 5 % ", "share", Fraction(5, 100)),
        ("0.5%", "share", Fraction(5, 1000)),
        (".5%", "share", Fraction(5, 1000)),
        ("100%", "share", Fraction(1)),
        ("0.05", "share", Fraction(5, 100)),
        (".05", "share", Fraction(5, 100)),
        ("1e-3", "share", Fraction(1, 1000)),
        ("1.0", "share", Fraction(1)),
        (1.0, "share", Fraction(1)),
        (0.29, "share", Fraction(29, 100)),
        (np.float32(0.05), "share", Fraction(5, 100)),
        ("5", "rows", Fraction(5)),
        ("1", "rows", Fraction(1)),
        (1, "rows", Fraction(1)),
        (np.int64(500), "rows", Fraction(500)),
        ("+7", "rows", Fraction(7)),
        ("200k-tokens", "tokens", Fraction(200_000)),
        ("1.5m-tokens", "tokens", Fraction(1_500_000)),
        ("1.5M-Tokens", "tokens", Fraction(1_500_000)),
        ("900 tokens", "tokens", Fraction(900)),
        ("1-token", "tokens", Fraction(1)),
    ],
)
def test_forms(text, unit, amount):
    budget = Budget.parse(text)
    assert (budget.unit, budget.amount, budget.of) == (unit, amount, "input")


@pytest.mark.parametrize("text", [0, "0", 0.0, "0.0", "0%", "-5", -5, -0.1, "-5%", "0-tokens", "0k-tokens"])
def test_nothing_is_refused_with_what_was_given_and_the_two_forms(text):
    with pytest.raises(SettingsError, match=f"`{text}` keeps nothing") as caught:
        Budget.parse(text)
    assert "`0.5%`" in caught.value.hint and "`5`" in caught.value.hint


@pytest.mark.parametrize("text", ["150%", "100.1%", 1.5, "5.0", "1e3", 500.0])
def test_more_than_everything_is_refused(text):
    with pytest.raises(SettingsError, match="more than everything"):
        Budget.parse(text)


def test_a_float_above_one_is_told_both_readings():
    with pytest.raises(SettingsError) as caught:
        Budget.parse("5.0")
    assert caught.value.hint == "`5` is rows, `5%` is a share"


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            " ",
            "junk",
            "nan",
            float("nan"),
            "inf",
            float("inf"),
            "5%%",
            "5 rows of",
            "k-tokens",
            "1e999",
            "9" * 5000,
        ],
        *["5,000", "٥", "5％", "0x10", "1_000", True, False, None, "-", "%", "1e-400", "5\n6"],
    ],
)
def test_junk_is_refused(text):
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        Budget.parse(text)
    assert "rows" in caught.value.hint and len(str(caught.value)) < 100


@pytest.mark.parametrize("text", ["0.5-tokens", "0.0001k-tokens"])
def test_tokens_are_whole(text):
    with pytest.raises(SettingsError, match="whole number of tokens"):
        Budget.parse(text)


def test_an_unknown_base_is_refused():
    with pytest.raises(SettingsError, match="`input` or `kept`"):
        Budget.parse(5, of="rest")


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_a_settings_error(text):
    try:
        budget = Budget.parse(text)
    except SettingsError:
        return
    assert budget.amount > 0 and (budget.unit != "share" or budget.amount <= 1)


@pytest.mark.parametrize(
    ("share", "total", "rows"),
    [("5%", 52002, 2600), ("1%", 63655, 636), (0.29, 100, 29), (0.07, 100, 7), ("0.57", 100, 57), (1.0, 7, 7)],
)
def test_shares_are_exact_and_rounded_down(share, total, rows):
    assert Budget.parse(share).rows(total, total) == rows


@given(st.integers(1, 100), st.integers(1, 10**7))
def test_percent_equals_integer_arithmetic(percent, total):
    if percent * total >= 100:
        assert Budget.parse(f"{percent}%").rows(total, total) == percent * total // 100
        assert Budget.parse(percent / 100).rows(total, total) == percent * total // 100


def test_a_share_of_no_row_is_refused_with_both_numbers_and_a_way_out():
    with pytest.raises(SettingsError, match=r"`5%` of 19 examples comes to 0 rows") as caught:
        Budget.parse("5%").rows(19, 19)
    assert "20 examples" in caught.value.hint
    assert Budget.parse("5%").rows(20, 20) == 1


def test_a_share_is_of_the_input_or_of_what_is_left():
    assert Budget.parse("10%").rows(1000, 873) == 100
    assert Budget.parse("10%", of="kept").rows(1000, 873) == 87


def test_nothing_to_choose_from_is_no_error_of_the_budget():
    assert Budget.parse("5%", of="kept").rows(1000, 0) == 0
    assert Budget.parse("5%").rows(0, 0) == 0


def test_more_rows_than_there_are_keeps_all_and_says_so():
    scores = scores_of([1, np.nan, 3])
    budget = Budget.parse(5)
    selection = Top().select(scores, budget)
    assert selection.kept == ["e0", "e2"]
    assert budget.note(scores, selection) == "`5` asks for 5 rows, but only 2 of 3 examples can be kept"
    assert Budget.parse(2).note(scores, selection) is None


def test_tokens_are_spent_in_order_and_stop_at_the_first_that_does_not_fit():
    scores = scores_of([4, 3, 2, 1], response_tokens=[10, 20, 100, 5])
    budget = Budget.parse("40-tokens")
    assert Top().select(scores, budget).kept == ["e0", "e1"]  # e3 would fit, but e2 stands before it
    assert Top().select(scores, Budget.parse("130-tokens")).kept == ["e0", "e1", "e2"]
    assert budget.note(scores, Top().select(scores, budget)) is None


def test_tokens_enough_for_all_are_said():
    scores = scores_of([1, 2], response_tokens=[3, 4])
    budget = Budget.parse("1k-tokens")
    assert budget.note(scores, Top().select(scores, budget)) == "all 2 examples that can be kept fit in `1k-tokens`"


def test_tokens_below_the_first_example_are_refused():
    scores = scores_of([1, 2], response_tokens=[3, 40])
    with pytest.raises(SettingsError, match="less than the 40 response tokens"):
        Top().select(scores, Budget.parse("10-tokens"))


def test_tokens_need_their_column():
    with pytest.raises(SettingsError, match="`response_tokens`"):
        Top().select(scores_of([1, 2]), Budget.parse("10-tokens"))


@pytest.mark.parametrize("odd", [np.nan, -1])
def test_tokens_need_a_count_of_every_candidate(odd):
    scores = scores_of([1, 2], response_tokens=[odd, 4.0])
    with pytest.raises(SettingsError, match="no count for example `e0`"):
        Top().select(scores, Budget.parse("10-tokens"))


def test_tokens_of_an_example_without_a_score_do_not_matter():
    scores = scores_of([np.nan, 2], response_tokens=[np.nan, 4.0])
    assert Top().select(scores, Budget.parse("10-tokens")).kept == ["e1"]
