"""k-means: what it promises of any result, and the same result every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from tests.neighbours.test_search import random_unit, unit
from tithe.errors import DataError, SettingsError
from tithe.neighbours import kmeans


def check(vectors, k, found):
    """None empty; centres are means; the nearest member is that of a loop over the members."""
    n = len(found)
    assert 1 <= n <= k and found.labels.shape == (len(vectors),) and found.centres.shape == (n, vectors.shape[1])
    assert found.labels.dtype == np.int64 and found.centres.dtype == np.float32
    firsts = []
    for cluster in range(n):
        members = [i for i, label in enumerate(found.labels.tolist()) if label == cluster]
        firsts.append(members[0])
        wide = vectors[members].astype(float)
        assert found.centres[cluster] == pytest.approx(wide.mean(0), abs=1e-6)
        away = ((wide - found.centres[cluster].astype(float)) ** 2).sum(1)
        chosen = members.index(int(found.nearest[cluster]))
        assert away[chosen] <= away.min() + 1e-15
        assert not any(np.array_equal(vectors[i], vectors[members[chosen]]) for i in members[:chosen])
    assert firsts == sorted(firsts)
    assert len(set(found.nearest.tolist())) == n


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), k=st.integers(1, 20), top=st.integers(1, 3))
def test_a_result_is_what_it_says(seed, n, k, top):
    vectors = unit(np.random.default_rng(seed).integers(-top, top + 1, (n, 3)))
    check(vectors, k, kmeans(vectors, k, seed % 5))


def test_groups_that_lie_apart_are_found():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(8), 50))
    vectors = unit(np.eye(8)[group] + rng.normal(0, 0.05, (400, 8)))
    found = kmeans(vectors, 8, 0)
    check(vectors, 8, found)
    assert sorted(group[found.nearest]) == list(range(8))
    assert (group[found.nearest][found.labels] == group).all()


def test_every_vector_is_with_its_nearest_centre():
    vectors = random_unit(2000, 16)
    found = kmeans(vectors, 20, 3)
    away = ((vectors[:, None].astype(float) - found.centres[None].astype(float)) ** 2).sum(2)
    assert (away.argmin(1) == found.labels).mean() > 0.99  # it stops where centres hardly move


def test_threads_change_nothing_and_the_seed_does():
    vectors = random_unit(5000, 32)
    with threadpool_limits(2):
        one = kmeans(vectors, 30, 0)
    with threadpool_limits(1):
        same = kmeans(vectors, 30, 0)
    assert np.array_equal(one.labels, same.labels) and np.array_equal(one.centres, same.centres)
    assert not np.array_equal(one.labels, kmeans(vectors, 30, 1).labels)


@pytest.mark.parametrize("k", [3, 4, 50])
def test_no_more_distinct_vectors_than_clusters(k):
    vectors = np.eye(3, dtype=np.float32)[[2, 0, 0, 1, 2, 2]]
    found = kmeans(vectors, k, 0)
    assert found.labels.tolist() == [0, 1, 1, 2, 0, 0]
    assert found.nearest.tolist() == [0, 1, 3]
    assert found.centres.tolist() == np.eye(3)[[2, 0, 1]].tolist()


def test_distinct_vectors_that_k_means_cannot_tell_apart_raise_no_warning():
    """Their squared distances are zero in float32."""
    vectors = np.eye(2, dtype=np.float32)[np.arange(20) % 2]
    vectors[::2, 1] = np.arange(10) * 1e-30
    found = kmeans(vectors, 6, 0)
    check(vectors, 6, found)
    assert len(found) < 6


def test_one_vector():
    found = kmeans(random_unit(1, 4), 5, 0)
    assert found.labels.tolist() == [0] and found.nearest.tolist() == [0]


def test_nothing_to_cluster():
    with pytest.raises(DataError, match="no vectors"):
        kmeans(random_unit(0, 4), 5, 0)
    with pytest.raises(SettingsError, match="at least 1 cluster"):
        kmeans(random_unit(9, 4), 0, 0)
    with pytest.raises(DataError, match="row 2 of the vectors has a number that is not finite"):
        kmeans(np.concatenate([random_unit(2, 4), np.full((1, 4), np.nan, np.float32)]), 2, 0)
