"""Nearest neighbours against a search from the formula: every pair, one by one, sums without rounding."""

from __future__ import annotations

import math
import subprocess
import sys
from operator import mul

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tithe.errors import DataError, SettingsError
from tithe.neighbours import candidate_filter, exact, nearest, rows
from tithe.neighbours.exact import cosines_of, paired, squares
from tithe.neighbours.rows import Rows

DTYPES = {"fp32": (torch.float32,), "bf16": (torch.bfloat16, torch.float32), "whole": ()}


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(np.float32)


def random_unit(n, dim, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def cosine(a, b):
    """Of float32 vectors: products are exact in float64, and so is their sum."""
    a, b = np.asarray(a, dtype=float).tolist(), np.asarray(b, dtype=float).tolist()
    area = dot(a, a) * dot(b, b)
    return dot(a, b) / math.sqrt(area) if area else 0.0


def cosines(vectors, pairs):
    """(pairs,) by the exact arithmetic of the search, one pair at a time."""
    a, b = (torch.from_numpy(vectors[rows]) for rows in pairs.T)
    return cosines_of(paired(a, b), squares(a), squares(b)).float().numpy()


def dot(a, b):
    return math.fsum(map(mul, a, b))


def naive(vectors, k, pool=None, exclude_above=None):
    """What is allowed, by cosine in steps of 2^-40 and then by row."""
    targets = vectors if pool is None else pool
    table = []
    for i, query in enumerate(vectors):
        near = [
            (-round(cosine(query, t) * 2**40) / 2**40, j) for j, t in enumerate(targets) if pool is not None or i != j
        ]
        near = sorted(pair for pair in near if exclude_above is None or -pair[0] < exclude_above)[:k]
        table.append([j for _, j in near] + [-1] * (k - len(near)))
    return np.array(table)


@pytest.fixture(params=list(DTYPES))
def products(request, monkeypatch):
    """Each product in turn, and blocks so small that there are many."""
    monkeypatch.setattr(exact, "product_dtypes", lambda queries, pool: DTYPES[request.param])
    monkeypatch.setattr(candidate_filter, "COLUMNS", 64)
    monkeypatch.setattr(candidate_filter, "BLOCK", 64 * 16)
    return request.param


@st.composite
def lattices(draw):
    """Few directions and many vectors: ties, duplicates, opposites, zeros; twice."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    dim, top = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return [unit(rng.integers(-top, top + 1, (draw(st.integers(1, 90)), dim))) for _ in range(2)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    both=lattices(), k=st.integers(1, 12), other=st.booleans(),
    exclude_above=st.sampled_from([None, 0.9999999, 0.95, 0.5000001, 0.0000001, -0.4999999]), collide=st.booleans(),
)  # fmt: skip
def test_equals_a_search_of_every_pair(products, both, k, other, exclude_above, collide):
    vectors, pool = both[0], both[1] if other else None
    targets = vectors if pool is None else pool
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # equal vectors are then mostly not known to be equal
            patch.setattr(rows, "fingerprints", lambda some: np.zeros(len(some), np.uint64))
        found = nearest(vectors, k, pool=pool, exclude_above=exclude_above, device="cpu")
    for i, got in enumerate(found.index.tolist()):
        table = {j: cosine(vectors[i], t) for j, t in enumerate(targets) if pool is not None or i != j}
        table = {j: c for j, c in table.items() if exclude_above is None or c < exclude_above}
        best = sorted(table.values(), reverse=True)[:k]
        assert got[len(best) :] == [-1] * (k - len(best)) and np.isnan(found.similarity[i, len(best) :]).all()
        chosen = got[: len(best)]
        assert len(set(chosen)) == len(best)
        # Different vectors may be tied in truth and 1e-16 apart in float64; equal ones are told by their rows alone.
        assert [table[j] for j in chosen] == pytest.approx(best, abs=2**-39)
        assert found.similarity[i, : len(best)] == pytest.approx(best, abs=1e-7)
        for j in chosen:
            twins = [t for t in table if t < j and np.array_equal(targets[t], targets[j])]
            assert [t for t in chosen[: chosen.index(j)] if t in twins] == twins


def test_ties_of_different_vectors_take_the_lowest_row(products):
    """All corners of a cube with an even number of minus signs: three ties for each of them, and doubled rows."""
    corners = unit([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1) if x * y * z > 0])
    axes = np.eye(3, dtype=np.float32)
    vectors = np.concatenate([axes, corners, -axes, corners])
    found = nearest(vectors, 6, device="cpu")
    assert found.index[0].tolist() == [3, 4, 10, 11, 1, 2]  # corners with x > 0, then what is at right angles
    assert found.index[3].tolist() == [10, 0, 1, 2, 4, 5]
    assert found.index[3][4:].tolist() != [5, 4] and found.similarity[3].tolist() == pytest.approx(
        [1, 3**-0.5, 3**-0.5, 3**-0.5, -1 / 3, -1 / 3]
    )


def near_ties(n, seed=0):
    """A query whose cosines with the others differ by some 1e-11: far below what float32 products tell apart."""
    rng = np.random.default_rng(seed)
    query = unit([[1, *[1e-3] * 15]])[0]
    others = np.tile(unit([[0.8, *[0.6 / math.sqrt(15)] * 15]]), (n, 1))
    others.view(np.int32)[:, 1:] += rng.integers(-3, 4, (n, 15), dtype=np.int32)  # a last place here or there
    return np.concatenate([[query], others]).astype(np.float32)


@pytest.mark.parametrize("n", [30, 400])  # few enough to be measured as candidates, and too many for that
@pytest.mark.parametrize("k", [1, 5])
def test_near_ties_are_told_apart(products, n, k):
    vectors = near_ties(n)
    assert nearest(vectors[:1], k, pool=vectors[1:], device="cpu").index.tolist() == [
        naive(vectors[:1], k, vectors[1:])[0].tolist()
    ]
    product = vectors[1:] @ vectors[0]
    assert len(set(product.tolist())) < 20, "float32 tells them apart, and the test shows nothing"


def test_near_ties_just_below_what_is_passed_over(products):
    vectors = near_ties(30)
    true = sorted(cosine(vectors[0], v) for v in vectors[1:])
    assert true[15] - true[14] > 1e-11
    found = nearest(vectors[:1], 3, pool=vectors[1:], exclude_above=(true[14] + true[15]) / 2, device="cpu")
    assert found.index.tolist() == naive(vectors[:1], 3, vectors[1:], (true[14] + true[15]) / 2).tolist()


@pytest.mark.parametrize("n", [30, 400])
@pytest.mark.parametrize("k", [1, 5])
def test_ties_that_rounding_hides(products, n, k):
    """One vector in many orders, and a query of equal numbers: the same sum each time, in another order."""
    rng = np.random.default_rng(2)
    one = np.abs(random_unit(1, 200)[0])
    vectors = np.stack([rng.permutation(one) for _ in range(n)])
    query = unit(np.ones((1, 200)))
    assert len({float(np.float32(sum(row, start=np.float32(0)))) for row in query * vectors}) > 5
    found = nearest(query, k, pool=vectors, device="cpu")
    assert found.index.tolist() == [list(range(k))]


def test_what_is_passed_over_hides_nothing_that_is_not(products):
    """Every chunk has a cosine that is just too great, by less than a quick product can tell; the next is far below."""
    height = np.where(np.arange(128) % 2 == 0, 0.9 + 1e-7, np.linspace(0.1, 0.5, 128))
    pool = unit(np.stack([height, np.sqrt(1 - height**2)], 1))
    found = nearest(np.eye(2, dtype=np.float32)[:1], 3, pool=pool, exclude_above=0.9, device="cpu")
    assert found.index.tolist() == [[127, 125, 123]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [3, 64, 1000])
def test_products_are_within_their_error(dtype, dim):
    rng = np.random.default_rng(dim)
    half = unit(np.full((1, dim), 1 + 2**-8) + rng.uniform(0, 2**-9, (300, dim)))  # between two bfloat16, all one way
    for vectors in (half, random_unit(300, dim), unit(rng.standard_normal((300, dim)) ** 5)):
        tensor = torch.from_numpy(vectors)
        products = (tensor.to(dtype) @ tensor.to(dtype).T).double().numpy()
        wide = vectors.astype(float)
        slack = 1.01 * (exact.stretch(exact.lengths(Rows(vectors))) ** 2 - 1)
        assert np.abs(products - wide @ wide.T).max() <= exact.CoarseProduct(dtype, dim, slack).error


def test_products_less_precise_than_they_say_are_not_believed(products, monkeypatch):
    vectors = near_ties(30)
    monkeypatch.setattr(exact.CoarseProduct, "error", 1e-12)
    assert nearest(vectors, 3, device="cpu").index.tolist() == naive(vectors, 3).tolist()


@pytest.mark.slow
def test_nothing_but_the_two_vectors_changes_a_similarity(monkeypatch):
    vectors = random_unit(700, 48)
    vectors[100:130] = vectors[7]
    found = nearest(vectors, 9, device="cpu")
    order = np.random.default_rng(1).permutation(48)
    again = nearest(np.ascontiguousarray(vectors[:, order]), 9, device="cpu")
    assert np.array_equal(found.index, again.index) and np.array_equal(found.similarity, again.similarity)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(candidate_filter, "BLOCK", 2**12)
    monkeypatch.setattr(candidate_filter, "WORTH_BF16", 0)
    monkeypatch.setattr(candidate_filter, "bf16_is_faster", lambda device, dim: True)
    again = nearest(vectors, 9, device="cpu")
    torch.set_num_threads(threads)
    assert np.array_equal(found.index, again.index) and np.array_equal(found.similarity, again.similarity)
    part = nearest(vectors[:50], 1, pool=vectors[500:], device="cpu")
    pairs = np.stack([np.arange(50), 500 + part.index[:, 0]], 1)
    assert np.array_equal(part.similarity[:, 0], cosines(vectors, pairs))
    pairs = np.stack([np.repeat(np.arange(700), 9), found.index.ravel()], 1)
    assert np.array_equal(cosines(vectors, pairs), found.similarity.ravel())
    assert np.array_equal(cosines(vectors, pairs[:, ::-1]), found.similarity.ravel())


def test_another_precision_set_by_somebody_is_put_aside_and_put_back():
    vectors = near_ties(30)
    torch.set_float32_matmul_precision("medium")
    try:
        assert nearest(vectors, 3, device="cpu").index.tolist() == naive(vectors, 3).tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_all_equal(products):
    found = nearest(np.tile(random_unit(1, 7), (500, 1)), 3, device="cpu")
    assert found.index[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert (found.index[4:] == [0, 1, 2]).all() and (found.similarity == 1).all()


def test_thousands_of_duplicates_are_passed_over(products):
    vectors = random_unit(3000, 16, seed=3)
    vectors[200:] = vectors[0]
    found = nearest(vectors, 2, exclude_above=1.0, device="cpu")
    assert found.index[2500].tolist() == naive(vectors[:200], 2, exclude_above=1.0)[0].tolist()
    few = naive(vectors[:201], 2, exclude_above=1.0)
    assert found.index[:200].tolist() == few[:200].tolist()


@pytest.mark.slow
def test_thousands_of_near_duplicates_are_passed_over(products):
    rng = np.random.default_rng(5)
    vectors = random_unit(1500, 16, seed=3)
    vectors[100:] = unit(vectors[0] + rng.normal(0, 1e-3, (1400, 16)))
    found = nearest(vectors, 2, exclude_above=0.99, device="cpu")
    for i in (0, 100, 777, 1499):
        assert found.index[i].tolist() == naive(vectors[[i]], 2, vectors, exclude_above=0.99)[0].tolist()


def test_a_vector_of_zeros_is_like_nothing():
    vectors = random_unit(80, 4)
    vectors[[2, 5]] = 0
    vectors[5] *= -1  # minus zero
    found = nearest(vectors, 2, device="cpu")
    assert found.index[2].tolist() == [0, 1] and found.index[5].tolist() == [0, 1]
    assert found.similarity[2].tolist() == [0, 0]
    assert nearest(vectors, 2, exclude_above=-0.1, device="cpu").index[2].tolist() == [-1, -1]


def test_one_row_has_no_neighbour():
    found = nearest(random_unit(1, 4))
    assert found.index.tolist() == [[-1]] and np.isnan(found.similarity).all()


@pytest.mark.parametrize("k", [4, 5, 300])
def test_more_neighbours_than_there_are(products, k):
    vectors = random_unit(5, 4)
    found = nearest(vectors, k, device="cpu")
    assert found.index.tolist() == naive(vectors, k).tolist()
    assert nearest(vectors, k, pool=vectors[:0], device="cpu").index.tolist() == [[-1] * k] * 5


def test_nobody_asks():
    assert nearest(random_unit(0, 4), 3).index.shape == (0, 3)
    assert nearest(random_unit(0, 4), 3, pool=random_unit(5, 4)).index.shape == (0, 3)


def test_vectors_may_be_read_only(tmp_path):
    vectors = random_unit(90, 6)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert nearest(mapped, 2).index.tolist() == nearest(vectors, 2).index.tolist() == naive(vectors, 2).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(bad):
    vectors = random_unit(9000, 6)
    vectors[8321, 4] = bad
    for ask in (lambda: nearest(vectors), lambda: nearest(vectors[:5], pool=vectors)):
        with pytest.raises(DataError, match=r"row 8321 of the (vectors|pool) has a number that is not finite"):
            ask()


def test_a_wrong_length_is_named():
    vectors = random_unit(50, 6)
    vectors[17] *= 2
    with pytest.raises(DataError, match="row 17 of the vectors has length 2, not 1"):
        nearest(vectors)


def test_another_dimension():
    with pytest.raises(DataError, match="vectors have 6 numbers each, those of the pool 5"):
        nearest(random_unit(9, 6), pool=random_unit(9, 5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "`k` must be at least 1"),
        ({"exclude_above": 1.5}, "above -1 and at most 1, not 1.5"),
        ({"exclude_above": float("nan")}, "above -1 and at most 1, not nan"),
        ({"method": "fast"}, "unknown search method `fast`"),
    ],
)
def test_settings_that_nobody_can_mean(given, message):
    with pytest.raises(SettingsError, match=message):
        nearest(random_unit(5, 4), **given)


@pytest.mark.slow
def test_memory_is_bounded():
    code = """
import resource, numpy as np, torch
from tithe.neighbours import nearest
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
vectors = np.random.default_rng(0).standard_normal((20678, 384), dtype=np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
nearest(vectors[:100]); before = peak(); nearest(vectors); print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300, "MB above the data; a whole table of products would be 1,710"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_finds_the_same():
    vectors = np.concatenate([random_unit(3000, 64), np.tile(random_unit(1, 64, 9), (200, 1))])
    for k, below in ((1, None), (30, 0.3)):
        one, other = (nearest(vectors, k, exclude_above=below, device=device) for device in ("cpu", "cuda"))
        assert np.array_equal(one.index, other.index)
        assert np.array_equal(one.similarity, other.similarity, equal_nan=True)
