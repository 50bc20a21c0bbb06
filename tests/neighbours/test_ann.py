"""Approximate search: what it finds is in exact order, and what it misses is counted."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from tests.neighbours.test_search import naive, random_unit, unit
from tithe.errors import MissingExtraError, SettingsError
from tithe.extras import install_hint
from tithe.neighbours import nearest, search
from tithe.neighbours.search import Ann

EVERYTHING = Ann(effort=10_000)


def clustered(n, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((40, dim))[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, dim)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("other", [False, True])
def test_looking_everywhere_is_exact(kind, other):
    vectors = clustered(2500)
    vectors[2000:2040] = vectors[5]
    vectors[7] = 0
    pool = clustered(3000, seed=1) if other else None
    found = nearest(vectors, 3, pool=pool, device="cpu", method=Ann(kind, effort=3000))
    true = nearest(vectors, 3, pool=pool, device="cpu", method="exact")
    some = np.arange(len(vectors)) != 7  # everything is as near to a vector of zeros, and no index shows it all
    assert np.array_equal(found.index[some], true.index[some])
    assert np.array_equal(found.similarity[some], true.similarity[some])
    assert found.ann is not None and found.ann.recall > 0.998 and found.ann.sample == 1000


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_recall_is_the_share_of_true_neighbours(kind):
    vectors = random_unit(3000, 24)
    found = nearest(vectors, 5, device="cpu", method=Ann(kind, effort=1, sample=10_000))
    true = nearest(vectors, 5, device="cpu", method="exact")
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(found.index.tolist(), true.index.tolist(), strict=True)]
    assert found.ann is not None and found.ann.sample == 3000
    assert found.ann.recall == pytest.approx(np.mean(shares)) and 0.02 < found.ann.recall < 0.98
    assert re.match(rf"{kind} \(effort 1\) found \d\d\.\d% of the true neighbours of 3,000", str(found.ann))
    near = (found.index >= 0).sum(1)
    assert all((np.diff(row[:n]) <= 0).all() for row, n in zip(found.similarity, near, strict=True))
    assert not (found.index == np.arange(3000)[:, None]).any()


def test_a_sample_is_near_the_whole():
    vectors = random_unit(3000, 24)
    sampled, whole = (nearest(vectors, 5, method=Ann(effort=2, sample=n)).ann for n in (400, 3000))
    assert sampled is not None and whole is not None
    assert sampled.sample == 400 and sampled.recall == pytest.approx(whole.recall, abs=0.06)  # 4 standard errors


@pytest.mark.slow
def test_neighbours_passed_over_make_it_look_further():
    rng = np.random.default_rng(0)
    vectors = random_unit(900, 8, seed=3)
    vectors[100:] = unit(vectors[0] + rng.normal(0, 1e-3, (800, 8)))
    found = nearest(vectors, 2, exclude_above=0.99, device="cpu", method=EVERYTHING)
    for i in (0, 100, 555):
        assert found.index[i].tolist() == naive(vectors[[i]], 2, vectors, exclude_above=0.99)[0].tolist()
    assert found.ann is not None and found.ann.short == 0 and found.ann.recall == 1


def test_queries_that_come_short_are_counted():
    rng = np.random.default_rng(0)
    vectors = random_unit(900, 8, seed=3)
    vectors[100:] = unit(vectors[0] + rng.normal(0, 1e-3, (800, 8)))
    found = nearest(vectors, 2, exclude_above=0.99, device="cpu", method=Ann(effort=10_000, most=100))
    assert found.ann is not None and found.ann.short == (found.index[:, 1] < 0).sum() == 801
    assert found.ann.recall == pytest.approx(99 / 900) and "801 came short" in str(found.ann)


def test_few_rows():
    assert nearest(random_unit(1, 4), method="ann").index.tolist() == [[-1]]
    vectors = random_unit(6, 4)
    assert nearest(vectors, 7, method="ann").index.tolist() == naive(vectors, 7).tolist()
    found = nearest(vectors, 7, method="ann")
    assert found.ann is not None and found.ann.recall == 1 and found.ann.short == 0


def test_large_pools_take_it_of_themselves(monkeypatch):
    monkeypatch.setattr(search, "EXACT_UP_TO", 500)
    assert nearest(random_unit(500, 4)).ann is None
    assert nearest(random_unit(501, 4)).ann is not None
    assert nearest(random_unit(501, 4), method="exact").ann is None
    assert nearest(random_unit(501, 4), pool=random_unit(500, 4)).ann is None


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="needs the package `faiss`") as caught:
        nearest(random_unit(50, 4), method="ann")
    assert install_hint("ann") in str(caught.value.hint)


@pytest.mark.parametrize("given", [{"kind": "tree"}, {"effort": 0}, {"sample": 0}, {"most": -1}])
def test_settings_that_nobody_can_mean(given):
    with pytest.raises(SettingsError):
        Ann(**given)


def test_the_seed_chooses_the_lists():
    vectors = random_unit(3000, 24)
    one, same, other = (nearest(vectors, 5, method=Ann(effort=1, seed=seed)).index for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert search.faiss().__name__ == "faiss"
