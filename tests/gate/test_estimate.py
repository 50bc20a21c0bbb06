"""Estimates of damage on pools of which the truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tithe.gate import estimate
from tithe.gate.estimate import DamageChance, Estimate, Estimator, ScoredMargins, damage_share

Floats = npt.NDArray[np.float64]
KINDS = np.repeat(["cut", "echo", "mixed", "numbers"], 100)


def margins(random: np.random.Generator, sound: int, damaged: int) -> Floats:
    return np.concatenate([random.normal(2.0, 1.0, sound), random.normal(-1.0, 1.2, damaged)])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_share_of_damage_in_a_mixture(share: float) -> None:
    found = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        found.append(
            damage_share(margins(random, round(2000 * (1 - share)), round(2000 * share)), margins(random, 0, 400))
        )
    assert np.mean(found) == pytest.approx(share, abs=0.03)
    assert max(abs(one - share) for one in found) < 0.1


def test_the_bound_by_hand() -> None:
    """Copies at 0 to 99: at their 0.4-quantile, 39.6, lies a tenth of the records, and nothing more up to 0.9."""
    records = np.array([0.0] * 10 + [1000.0] * 90)
    # The bounds are 0.1 / 0.4 to 0.1 / 0.9.
    assert damage_share(records, np.arange(100.0)) == pytest.approx(0.1 / 0.9)
    assert damage_share(np.full(7, 1000.0), np.arange(100.0)) == 0
    assert damage_share(np.full(7, -1.0), np.arange(100.0)) == 1


def scored(random: np.random.Generator, sound: int, damaged: int) -> ScoredMargins:
    """Damaged records have the higher scores, as with IFD, and among them those that hide best the highest."""
    all_margins = margins(random, sound, damaged)
    scores = random.normal(size=sound + damaged)
    scores[sound:] += 1.0 + 0.3 * (all_margins[sound:] + 1.0)
    return ScoredMargins(all_margins, scores)


def pool_and_choice(seed: int) -> tuple[Estimator, npt.NDArray[np.int64], float]:
    """A pool of 2,000, a fifth damaged; the 200 highest scores of those with a margin above 0; the truth."""
    random = np.random.default_rng(seed)
    pool = scored(random, 1600, 400)
    drawn = random.choice(2000, 400, replace=False)
    able = np.flatnonzero(pool.margins > 0)
    chosen = able[np.argsort(-pool.scores[able])[:200]]
    estimator = Estimator(pool, pool.some(drawn), scored(random, 0, 400), KINDS, seed)
    return estimator, chosen, float((chosen >= 1600).mean())


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootstrap of fewer draws, for the time that it takes."""
    monkeypatch.setattr(estimate, "DRAWS", 3)


@pytest.mark.slow
def test_the_truth_lies_in_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 90 % interval holds the truth in 18 of 20 pools, and in 17 or more with some luck."""
    monkeypatch.setattr(estimate, "DRAWS", 40)
    inside, off = 0, []
    for seed in range(20):
        estimator, chosen, truth = pool_and_choice(seed)
        found = estimator.of(chosen)
        assert 0 <= found.low <= found.share <= found.high <= 1
        inside += found.low <= truth <= found.high
        off.append(found.share - truth)
    assert inside >= 17
    assert abs(np.mean(off)) < 0.03


@pytest.mark.usefixtures("few_draws")
def test_a_seed_gives_one_interval() -> None:
    found = [pool_and_choice(0) for _ in range(2)]
    assert found[0][0].of(found[0][1]) == found[1][0].of(found[1][1])


@pytest.mark.usefixtures("few_draws")
def test_of_nothing_nothing_is_damaged() -> None:
    estimator, _, _ = pool_and_choice(0)
    assert estimator.of([]) == Estimate(0.0, 0.0, 0.0)


def test_a_score_that_says_nothing_leaves_the_margin() -> None:
    """All scores are equal: the mean chance over the pool is the pool's share of damage."""
    random = np.random.default_rng(0)
    one, records, copies = (
        ScoredMargins(found, np.zeros(len(found)))
        for found in (margins(random, 1600, 400), margins(random, 320, 80), margins(random, 0, 400))
    )
    chance = DamageChance.fit(one, records, copies)
    assert chance(one).mean() == pytest.approx(0.2, abs=0.05)
    low, high = chance(ScoredMargins(np.array([-3.0, 4.0]), np.zeros(2)))
    assert low > 0.9 and high < 0.05


def test_an_estimate_is_printed_with_its_interval() -> None:
    assert str(Estimate(0.043, 0.021, 0.0777)) == "4.3% (2.1% to 7.8%)"
