"""The choice of examples for the warm-up, against the rule as it is told in words."""

import math

import numpy as np
import pytest

from tithe.lab.tune.warmup import choose_middling, choose_nearest, choose_random
from tithe.neighbours.clusters import kmeans


def percentile(values, share):
    """By linear interpolation between the sorted values, as NumPy and the authors have it."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def in_words(labels, perplexities, each):
    chosen = []
    for cluster in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == cluster]
        if len(members) < each:
            chosen += members
            continue
        inside = [perplexities[i] for i in members]
        low, high = percentile(inside, 0.25), percentile(inside, 0.75)
        band = [i for i in members if low <= perplexities[i] <= high]
        if len(band) < each:
            chosen += band
            continue
        every = len(band) // each
        chosen += [band[k * every] for k in range(each)]
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("each", [1, 3, 10])
def test_middle_is_the_rule_in_words(seed, each):
    draw = np.random.default_rng(seed)
    labels = draw.choice(12, 400, p=np.arange(1, 13) / 78)  # small clusters and large ones
    perplexities = np.exp(draw.normal(2, 1, 400))
    if seed == 4:
        perplexities = np.round(perplexities)  # ties at the edges of the band
    assert choose_middling(labels, perplexities, each).tolist() == in_words(
        labels.tolist(), perplexities.tolist(), each
    )


def test_a_small_cluster_is_taken_whole_and_a_large_one_without_its_extremes():
    labels = np.array([0] * 4 + [1] * 40)
    perplexities = np.concatenate([[1, 1000, 1, 1000], np.arange(40)])
    got = choose_middling(labels, perplexities, 5)
    assert got[:4].tolist() == [0, 1, 2, 3]
    assert len(got) == 9 and all(9 < perplexities[i] < 30 for i in got[4:])


def test_nearest_takes_the_heart_of_every_cluster():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = kmeans(vectors, 6, 0)
    got = choose_nearest(found, vectors, 3)
    for cluster in range(len(found)):
        members = np.flatnonzero(found.labels == cluster)
        apart = np.linalg.norm(vectors[members] - vectors[members].mean(axis=0), axis=1)
        assert set(got) & set(members) == set(members[np.argsort(apart)[:3]])


def test_random_is_a_draw_without_return():
    got = choose_random(50, 20, 3)
    assert len(set(got.tolist())) == 20 and got.tolist() == sorted(got.tolist()) == choose_random(50, 20, 3).tolist()
    assert choose_random(50, 20, 4).tolist() != got.tolist()
    assert choose_random(5, 20, 0).tolist() == [0, 1, 2, 3, 4]
