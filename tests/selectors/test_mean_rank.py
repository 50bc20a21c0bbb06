"""A mean of ranks: how it is written, and what it comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tithe.errors import SettingsError
from tithe.selectors.mean_rank import MeanRank, is_mean_rank

GOOD = {
    "rank(ifd)": [("ifd", 1.0, False)],
    "rank(ifd)+rank(length)": [("ifd", 1.0, False), ("length", 1.0, False)],
    " 2 * rank( ifd ) - .5*rank (miwv) ": [("ifd", 2.0, False), ("miwv", 0.5, True)],
    "-rank(a)+10.25*rank(b)": [("a", 1.0, True), ("b", 10.25, False)],
    'rank(a(x="(+")) + rank(b(y=[1]))': [('a(x="(+")', 1.0, False), ("b(y=[1])", 1.0, False)],
}
BAD = {
    "": "is empty",
    "rank()": "rank of nothing",
    "rank(a)rank(b)": "`rank(b)` is not expected",
    "rank(a)+": "`+` is not expected",
    "rank(a)+b": "`+b` is not expected",
    "rank(a)*2": "`*2` is not expected",
    "0*rank(a)+rank(b)": "weight 0",
    "rank(a)+2*rank(a)": "`a` twice",
    "rank(a": "do not match",
    "1e3*rank(a)": "`1e3*rank(a)` is not expected",
}


@pytest.mark.parametrize("text", GOOD)
def test_what_can_be_read(text):
    terms = [(term.spec, term.weight, term.low) for term in MeanRank.parse(text).terms]
    assert terms == GOOD[text] and is_mean_rank(text)


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_is_refused_with_its_place(text):
    with pytest.raises(SettingsError) as caught:
        MeanRank.parse(text)
    assert BAD[text] in str(caught.value) and caught.value.hint


def test_one_spelling():
    assert str(MeanRank.parse(" 2.0*rank(ifd(x=1))  - rank(b)")) == "2*rank(ifd)-rank(b)"
    assert str(MeanRank.parse("-rank(b) + rank(a)")) == "-rank(b)+rank(a)"
    renamed = MeanRank.parse("rank(a)-3*rank(b)").renamed({"a": "a_residual"})
    assert str(renamed) == "rank(a_residual)-3*rank(b)"
    assert not any(map(is_mean_rank, ("ifd", "ranked", "random(seed=1)", "ifd+length", "")))


few = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), min_size=1, max_size=40)


@given(few, st.integers(1, 5), st.booleans())
def test_the_mean_of_average_ranks(pairs, weight, low):
    """scipy gives ties their average rank, from 1; a rank r of n is the share (r - 0.5) / n."""
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    n, found = len(a), MeanRank.parse(f"{weight}*rank(a){'-' if low else '+'}rank(b)").values({"a": a, "b": b})
    first, second = ((rankdata(column) - 0.5) / n for column in (a, b))
    expected = (weight * first + (1 - second if low else second)) / (weight + 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert ((found > 0) & (found < 1)).all()


def test_equal_means_are_equal_to_the_last_bit():
    """Every order of three ranks comes to the same mean, though 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floats."""
    orders = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]], dtype=float)
    columns = {name: orders[i] for i, name in enumerate("abc")}
    found = MeanRank.parse("rank(a)+rank(b)+rank(c)").values(columns)
    assert len(set(found.tolist())) == 1


def test_what_one_scorer_lacks_has_no_rank_and_moves_no_other():
    a, b = np.array([1.0, np.nan, 3.0, 2.0]), np.array([5.0, 9.0, np.nan, 7.0])
    found = MeanRank.parse("rank(a)+rank(b)").values({"a": a, "b": b})
    assert np.isnan(found[[1, 2]]).all()
    np.testing.assert_allclose(found[[0, 3]], [0.25, 0.75])  # of the two that have both


def test_others_get_the_rank_that_they_would_have():
    ranks = MeanRank.parse("rank(a)")
    found = ranks.values({"a": np.array([0.0, 2.0, 2.5, 9.0, np.nan])}, {"a": np.array([1.0, 2.0, 3.0, 4.0])})
    np.testing.assert_array_equal(found, [0, 0.375, 0.5, 1, np.nan])
    assert np.isnan(ranks.values({"a": np.array([1.0])}, {"a": np.empty(0)})).all()
