"""Against the naive greedy in fractions, on vectors whose cosines are exact and full of ties."""

import itertools
import tracemalloc
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.neighbours.coverage import central, exact, facility_location, farthest_first, unlike

# All of length exactly 1, with cosines in quarters: two signs in four places, one sign in one, and nothing known.
HALVES = [np.array(signs) / 2 for signs in itertools.product((-1, 1), repeat=4)]
AXES = [sign * np.eye(4)[place] for place in range(4) for sign in (-1, 1)]
CORNERS = [*HALVES, *AXES]

corners = st.lists(st.sampled_from(range(len(CORNERS))), min_size=1, max_size=10).map(
    lambda picked: np.array([CORNERS[i] for i in picked], dtype=np.float32)
)


def random_unit(rows, dim, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def cosines(vectors):
    """In fractions, from the definition; vectors of length exactly 1."""
    rows = [[Fraction(float(x)) for x in row] for row in vectors]
    return [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def naive_greedy(cos, bonus):
    """At every step the value of the whole set with each candidate in it; the first of the best is taken."""

    def value(chosen):
        best = [max([Fraction(0), *(cos[i][j] for j in chosen)]) for i in range(len(cos))]
        return sum(best) + sum(bonus[j] for j in chosen)

    chosen = []
    while len(chosen) < len(cos):
        left = [j for j in range(len(cos)) if j not in chosen]
        chosen.append(max(left, key=lambda j: (value([*chosen, j]), -j)))
    return chosen


def naive_farthest(cos, first):
    chosen = [first]
    while len(chosen) < len(cos):
        left = [j for j in range(len(cos)) if j not in chosen]
        chosen.append(min(left, key=lambda j: (max(cos[j][k] for k in chosen), j)))
    return chosen


def naive_walk(cos, threshold):
    kept = []
    for i in range(len(cos)):
        if all(cos[i][j] < threshold for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(cos))]


@given(corners, st.data())
@settings(max_examples=100, deadline=None)
def test_lazy_is_naive_with_ties(vectors, data):
    quarters = st.integers(0, 8).map(lambda q: Fraction(q, 4))
    bonus = data.draw(st.lists(quarters, min_size=len(vectors), max_size=len(vectors)))
    tile = data.draw(st.sampled_from([1, 3, 16, 2**18]))
    expected = naive_greedy(cosines(vectors), bonus)
    assert list(facility_location(vectors, np.array(bonus, dtype=float), tile=tile)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_lazy_is_naive_over_many_steps_with_planted_duplicates(seed):
    """Enough rows for all ways of evaluating: several looks, anew and by the changes; halves are exact."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], size=(45, 16)) / 4
    signs[:, 8:] = np.abs(signs[:, 8:])  # leaning one way, as prompts do
    vectors = signs[rng.integers(0, 45, 60)].astype(np.float32)
    cos = np.array(vectors @ vectors.T, dtype=np.float64)  # multiples of 1/16: no rounding anywhere below
    best, expected = np.zeros(60), []
    for _ in range(60):
        gains = np.maximum(cos - best, 0).sum(axis=1)
        gains[expected] = -1
        expected.append(int(np.argmax(gains)))
        best = np.maximum(best, cos[expected[-1]])
    for tile in (7, 2**18):
        assert list(facility_location(vectors, tile=tile)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_lazy_is_naive_on_ordinary_vectors(seed):
    vectors = random_unit(150, 24, seed)
    vectors[::7] = vectors[3]
    cos = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    best, found = np.zeros(150), list(facility_location(vectors))
    for step, row in enumerate(found):
        gains = np.maximum(cos - best, 0).sum(axis=1)
        gains[found[:step]] = -1
        assert gains[row] >= gains.max() - 1e-6
        assert np.flatnonzero(np.all(vectors == vectors[row], axis=1) & (gains > -1))[0] == row  # of equals the first
        best = np.maximum(best, cos[row])


@settings(deadline=None)
@given(corners, st.sampled_from([1, 2, 5, 4096]), st.data())
def test_farthest_first_is_naive_with_ties(vectors, ahead, data):
    first = data.draw(st.integers(0, len(vectors) - 1))
    assert list(farthest_first(vectors, first, ahead=ahead)) == naive_farthest(cosines(vectors), first)


@settings(deadline=None)
@given(corners, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.sampled_from([1, 2, 5, 512]))
def test_the_walk_is_naive(vectors, threshold, block):
    assert list(unlike(vectors, threshold, block=block)) == naive_walk(cosines(vectors), threshold)


def test_the_central_row_is_likest_to_the_mean():
    vectors = random_unit(50, 8)
    assert central(exact(vectors)) == int(np.argmax(vectors @ vectors.mean(axis=0)))
    assert next(farthest_first(vectors)) == central(exact(vectors))
    assert central(exact(np.eye(4)[[2, 2, 0, 0]])) == 0


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 99), st.integers(1, 50), st.integers(1, 60))
def test_blocks_change_nothing(rows, seed, block, tile):
    vectors = random_unit(rows, 9, seed)
    vectors[rows // 2 :: 3] = vectors[0]
    assert list(facility_location(vectors, tile=tile)) == list(facility_location(vectors))
    assert list(farthest_first(vectors, 0, ahead=block)) == list(farthest_first(vectors, 0))
    assert list(unlike(vectors, 0.3, block=block)) == list(unlike(vectors, 0.3))


def test_the_place_in_the_input_changes_nothing_where_nothing_is_tied():
    vectors, order = random_unit(400, 33), np.random.default_rng(1).permutation(400)
    place = {int(row): at for at, row in enumerate(order)}
    for walk in (facility_location, lambda rows: farthest_first(rows, None)):
        assert [place[row] for row in walk(vectors)] == list(walk(vectors[order]))


def test_threads_change_nothing():
    from threadpoolctl import threadpool_limits

    vectors = random_unit(700, 96)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            kept = list(islice(facility_location(vectors), 60))
            found.append((kept, list(islice(farthest_first(vectors), 200)), list(unlike(vectors, 0.2))))
    assert found[0] == found[1]


def test_sums_are_exact():
    """Every dot product of the grid equals the one in fractions, which float64 in general does not."""
    rows = exact(random_unit(6, 300))
    product = rows @ rows.T
    for i, j in itertools.product(range(6), repeat=2):
        assert Fraction(product[i, j]) == sum(Fraction(a) * Fraction(b) for a, b in zip(rows[i], rows[j], strict=True))


def test_the_grid_moves_a_cosine_by_less_than_a_millionth():
    vectors = random_unit(60, 1024)
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(exact(vectors) @ exact(vectors).T - wide @ wide.T).max() < 1e-6


def test_equal_vectors_are_alike_whatever_float32_made_of_their_length():
    vectors = random_unit(40, 50)[np.arange(80) % 40] * np.float32(1.0005)
    assert list(unlike(vectors, 1.0)) == [True] * 40 + [False] * 40
    order = list(farthest_first(vectors, 0))
    assert set(order[:40]) == set(range(40))
    assert order[40:] == list(range(40, 80))  # all at distance 0: in order


def test_all_equal_is_the_order_of_the_input():
    vectors = random_unit(1, 8)[[0] * 30]
    for ahead in (1, 4, 4096):
        assert list(farthest_first(vectors, 3, ahead=ahead)) == [3, 0, 1, 2, *range(4, 30)]
    assert list(facility_location(vectors)) == list(range(30))
    assert list(unlike(vectors, 0.9)) == [True] + [False] * 29


def test_zeros_are_like_zeros_and_nothing_else():
    vectors = np.array([[1, 0], [0, 0], [0, 0], [0, 1]], dtype=np.float32)
    assert list(unlike(vectors, 0.5)) == [True, True, False, True]
    assert list(farthest_first(vectors, 0)) == [0, 1, 3, 2]
    assert list(facility_location(vectors)) == [1, 0, 3, 2]  # the zeros stand for two


def test_one_row_and_none():
    assert list(farthest_first(random_unit(1, 4))) == list(facility_location(random_unit(1, 4))) == [0]
    assert list(unlike(random_unit(1, 4), 0.1)) == [True]
    none = np.empty((0, 4), dtype=np.float32)
    assert list(farthest_first(none)) == list(facility_location(none)) == list(unlike(none, 0.9)) == []


def test_negative_cosines_cover_nothing():
    """Three against two opposite and two across: 3 > 2. Raw, the three stand for 3 - 2 = 1, and the two for 2."""
    vectors = np.array([[1, 0]] * 3 + [[-1, 0]] * 2 + [[0, 1]] * 2, dtype=np.float32)
    assert list(facility_location(vectors)) == [0, 3, 5, 1, 2, 4, 6]


def test_memory_is_far_below_a_matrix_of_all_pairs():
    vectors = random_unit(3000, 16)  # all pairs are 72 MB
    tracemalloc.start()
    list(islice(facility_location(vectors), 10))
    list(islice(farthest_first(vectors), 10))
    list(unlike(vectors, 0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


def test_rows_that_are_not_of_length_one_are_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="longer than 1"):
        exact(np.full((1, 4), 3.0))
