"""Estimate shares of damage: in a pool, and in a selection from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Floats: TypeAlias = npt.NDArray[np.float64]
QUANTILES = np.linspace(0.4, 0.9, 26)  # of the copies' margins, at which the two distributions are compared
DRAWS = 100  # of the bootstrap
LEVEL = 0.9  # of the interval
RANK_EDGE = 0.01  # ranks are kept this far from 0 and 1, so that their logits stay finite


def damage_share(records: Floats, copies: Floats) -> float:
    """Estimate the share of damage among records from their margins and those of damaged copies.

    The records are a mixture: F = (1 - p) F_sound + p F_damaged, and F_sound >= 0, so p <= F(t) / F_damaged(t) at
    every threshold t. The least of these bounds is the estimate: low margins are mostly damage.

    Returns:
        A share, 0 to 1; right as far as damage in the pool has the margins that the copies have.
    """
    cuts = np.quantile(copies, QUANTILES)
    ordered = np.sort(records)
    below = np.searchsorted(ordered, cuts, side="right") / len(records)
    return float(min(1.0, np.min(below / QUANTILES)))


@dataclass(frozen=True)
class ScoredMargins:
    """Margins and scores of some passes.

    Args:
        margins: (passes,) cross-fitted where the probes were taught with them.
        scores: (passes,) by which the selection ranks; all equal if there are none.
    """

    margins: Floats
    scores: Floats

    def some(self, which: npt.NDArray[np.int64]) -> ScoredMargins:
        return ScoredMargins(self.margins[which], self.scores[which])


@dataclass(frozen=True)
class DamageChance:
    """The chance that a record is damaged, given its margin and its score.

    By Bayes' rule it is p f_damaged / f_records. The ratio of the densities is the odds of a logistic regression of
    copies against drawn records, on the margin, the logit of the score's rank in the pool, and their product.

    Args:
        share: p, share of damage in the pool.
        regression: copies against records.
        ranks: (pool,) the pool's scores, ascending.
    """

    share: float
    regression: LogisticRegression
    ranks: Floats

    @classmethod
    def fit(cls, pool: ScoredMargins, records: ScoredMargins, copies: ScoredMargins) -> Self:
        """Fit from the margins and scores of the pool, of the drawn records, and of their copies."""
        from sklearn.linear_model import LogisticRegression

        ranks = np.sort(pool.scores)
        both = ScoredMargins(
            np.concatenate([records.margins, copies.margins]), np.concatenate([records.scores, copies.scores])
        )
        is_copy = np.arange(len(both.margins)) >= len(records.margins)
        fit = LogisticRegression(C=1.0, class_weight="balanced", max_iter=500).fit(features(both, ranks), is_copy)
        return cls(damage_share(pool.margins, copies.margins), fit, ranks)

    def __call__(self, some: ScoredMargins) -> Floats:
        """Return the chance of each record: (records,)."""
        odds = np.exp(np.minimum(self.regression.decision_function(features(some, self.ranks)), 50.0))
        found: Floats = np.minimum(1.0, self.share * odds)
        return found


def features(some: ScoredMargins, ranks: Floats) -> Floats:
    """Return (passes, 4): margin, logit of the score's rank, their product, and the margin where it is negative."""
    rank = np.searchsorted(ranks, some.scores) / len(ranks)
    rank = np.clip(rank, RANK_EDGE, 1 - RANK_EDGE)
    logit, margin = np.log(rank / (1 - rank)), some.margins
    return np.stack([margin, logit, logit * margin, np.minimum(margin, 0.0)], axis=1)


@dataclass(frozen=True)
class Estimate:
    """An estimated share of damage.

    Args:
        share: 0 to 1.
        low: lower end of the 90 % interval.
        high: upper end.
    """

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%})"


class Estimator:
    """Estimates of the share of damage in selections from one pool.

    The interval is by a bootstrap over drawn records and copies. Kinds of damage are drawn too: which of them the pool
    has, and how much of each, is not known, and the copies of some lie much farther from sound records than others.

    Args:
        pool: all records of the pool that have margin and score.
        records: the drawn ones.
        copies: their copies.
        kinds: (copies,) name of each copy's damage.
        seed: random seed of the bootstrap.
    """

    def __init__(
        self,
        pool: ScoredMargins,
        records: ScoredMargins,
        copies: ScoredMargins,
        kinds: npt.NDArray[np.str_],
        seed: int,
    ) -> None:
        from threadpoolctl import threadpool_limits

        self.pool, self.random = pool, np.random.default_rng(seed)
        self.draws: list[DamageChance] = []
        with threadpool_limits(1):  # the last bits of a product depend on the number of threads
            self.chance = DamageChance.fit(pool, records, copies)
            for _ in range(DRAWS):
                own = records.some(self.random.integers(0, len(records.margins), len(records.margins)))
                self.draws.append(DamageChance.fit(pool, own, copies.some(draw_kinds(kinds, self.random))))

    def of(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> Estimate:
        """Estimate the share of damage among these places of the pool.

        The interval has the draws' spread and the chance in a finite selection.
        """
        some = self.pool.some(np.asarray(chosen, dtype=np.int64))
        count = len(some.margins)
        if not count:
            return Estimate(0.0, 0.0, 0.0)
        means = np.array([float(one(some).mean()) for one in self.draws])
        seen = self.random.binomial(count, means) / count
        low, high = np.quantile(seen, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        share = float(self.chance(some).mean())
        return Estimate(share, float(min(low, share)), float(max(high, share)))


def draw_kinds(kinds: npt.NDArray[np.str_], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw kinds with replacement, and as many copies of each as there are; return the places of the copies."""
    places = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    drawn = [places[i] for i in random.integers(0, len(places), len(places))]
    return np.concatenate([random.choice(some, len(some)) for some in drawn])
