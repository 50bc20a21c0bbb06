"""A score without what the length of the response predicts."""

from __future__ import annotations

import numpy as np
import pytest

from tithe.run.table import ENOUGH, rank_correlation, residuals


def lengths(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 400, n)


def test_what_a_curve_of_the_length_says_is_gone() -> None:
    tokens = lengths(400)
    noise = np.random.default_rng(1).standard_normal(400)
    left = residuals(np.log(tokens) ** 3 + noise, tokens)
    assert np.corrcoef(left, noise)[0, 1] > 0.98
    assert abs(left.mean()) < 1e-9


def test_few_examples_get_a_straight_line() -> None:
    tokens = lengths(ENOUGH - 1)
    x = np.log(tokens)
    values = 2 + 3 * x + np.random.default_rng(1).standard_normal(len(x))
    slope, level = np.polyfit(x, values, 1)
    np.testing.assert_allclose(residuals(values, tokens), values - level - slope * x, atol=1e-9)


def test_many_of_one_length_get_a_straight_line_too() -> None:
    tokens = np.r_[np.full(150, 7), lengths(10)]
    values = np.arange(160.0)
    slope, level = np.polyfit(np.log(tokens), values, 1)
    np.testing.assert_allclose(residuals(values, tokens), values - level - slope * np.log(tokens), atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 30, 200])
def test_all_of_one_length_keep_their_distances(n: int) -> None:
    values = np.random.default_rng(0).standard_normal(n)
    np.testing.assert_allclose(residuals(values, np.full(n, 7)), values - values.mean(), atol=1e-9)


def test_what_has_no_score_has_no_residual_and_moves_none() -> None:
    tokens, values = lengths(100), np.random.default_rng(0).standard_normal(100)
    holes = values.copy()
    holes[[3, 50]] = np.nan
    there = ~np.isnan(holes)
    left = residuals(holes, tokens)
    assert np.isnan(left[[3, 50]]).all()
    np.testing.assert_allclose(left[there], residuals(values[there], tokens[there]))
    assert np.isnan(residuals(np.full(4, np.nan), tokens[:4])).all()


def test_order_changes_nothing() -> None:
    tokens, values = lengths(100), np.random.default_rng(0).standard_normal(100)
    mixed = np.random.default_rng(2).permutation(100)
    np.testing.assert_allclose(residuals(values[mixed], tokens[mixed]), residuals(values, tokens)[mixed], atol=1e-9)


def test_rank_correlation() -> None:
    a, b = np.array([1.0, 2, 3, np.nan, 5]), np.array([10.0, 8, 6, 4, np.nan])
    assert rank_correlation(a, b) == pytest.approx(-1)
    assert rank_correlation(a, np.ones(5)) is None
    assert rank_correlation(np.full(5, np.nan), b) is None
