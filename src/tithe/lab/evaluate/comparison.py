"""Compare two arms, which chose their data in two ways, on one metric: effect, tests, and a corrected verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from tithe.errors import MissingExtraError
from tithe.extras import install_hint
from tithe.lab.evaluate.measured import Measured
from tithe.lab.evaluate.paired import MeanDifference, detectable, items_needed, mean_difference, pooled, seeds_needed
from tithe.records import FloatArray

Verdict = Literal["better", "worse", "not distinguishable", "no verdict"]
ALPHA = 0.05


@dataclass(frozen=True)
class PairedValues:
    """Values of two arms on the same items, one row per seed.

    Args:
        arm: (seeds, items).
        other: (seeds, items).
        items: ids of the items, or of their clusters.
        left_out: number of items without a value in some run.
    """

    arm: FloatArray
    other: FloatArray
    items: tuple[str, ...]
    left_out: int


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two arms at one budget, on one metric or one group of its items.

    Args:
        metric: name of the metric.
        group: group of items; None for all items.
        arm: name of the arm.
        against: name of the arm it is compared with.
        budget: budget of both arms.
        unit: unit of values and effects.
        means: means of both arms over items and seeds.
        items: number of items with a value in every run; prompts, where several items share one.
        left_out: number of items without a value in some run.
        by_seed: effect of each seed.
        difference: test and interval with seeds and items as random effects; None with one seed or one item.
        tested: test of these models with only items as random; None for groups.
        p_holm: `difference.p`, corrected for all comparisons of the family.
        family: number of comparisons that are corrected together.
        verdict: verdict at the 5 % level, by `p_holm`.
        detectable: smallest effect found with 80 % power at the first step of Holm's procedure.
        items_needed: items needed to find the observed effect with these seeds; None if no number is enough.
        seeds_needed: seeds needed to find it on these items; None if no number is enough.
        why: why there is no verdict.
    """

    metric: str
    group: str | None
    arm: str
    against: str
    budget: str
    unit: str
    means: tuple[float, float]
    items: int
    left_out: int
    by_seed: tuple[float, ...]
    difference: MeanDifference | None
    tested: ItemTest | None
    p_holm: float | None = None
    family: int = 1
    verdict: Verdict = "no verdict"
    detectable: float | None = None
    items_needed: int | None = None
    seeds_needed: int | None = None
    why: str | None = None

    @property
    def effect(self) -> float:
        """Return the mean difference in the metric's unit; positive if the arm is better."""
        return float(np.mean(self.by_seed))

    @property
    def relative(self) -> float | None:
        """Return the effect as a share of the other arm's mean; None if that is 0."""
        return self.effect / abs(self.means[1]) if self.means[1] else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"effect": self.effect, "relative": self.relative}


def pair_values(arm: Sequence[Measured], other: Sequence[Measured], items: Sequence[str] | None = None) -> PairedValues:
    """Return the values of the items that every run has a value for.

    Args:
        arm: one measurement per seed.
        other: one measurement per seed, in the same order.
        items: only these items; all by default.
    """
    runs = [*arm, *other]
    first = runs[0]
    # An item without a value in one run is left out of all: each seed's mean must be over the same items.
    there = set.intersection(*(set(run.items) for run in runs))
    known = {item: None for run in runs for item in (*run.items, *run.problems)}  # in order
    asked = known if items is None else set(items)
    wanted = [item for item in known if item in asked]
    common = tuple(item for item in wanted if item in there)
    values = [np.stack([run.only(common).values for run in side]) for side in (arm, other)]
    both = PairedValues(values[0], values[1], common, len(wanted) - len(common))
    return average_clusters(both, first.only(common).clusters)


def average_clusters(both: PairedValues, clusters: Sequence[str]) -> PairedValues:
    """Average the items of each cluster, such as several responses to one prompt.

    They depend on each other, and a test that treated them as independent would report p-values that are too small.
    """
    if not clusters:
        return both
    names, of_item = np.unique(np.array(clusters), return_inverse=True)
    weights = (of_item[:, None] == np.arange(len(names))[None, :]).astype(np.float64)  # (items, clusters)
    weights /= weights.sum(0)  # each column sums to 1: a product with it is the mean of the cluster
    # (seeds, items) @ (items, clusters) -> (seeds, clusters)
    return PairedValues(both.arm @ weights, both.other @ weights, tuple(names.tolist()), both.left_out)


def compare(
    arm: Sequence[Measured],
    other: Sequence[Measured],
    *,
    names: tuple[str, str],
    budget: str,
    group: str | None = None,
) -> Comparison:
    """Compare two arms; the verdict follows in `corrected`, which has all comparisons of the family.

    Args:
        arm: one measurement per seed.
        other: measurements of the same metric, one per seed, in the same order.
        names: names of both arms.
        budget: budget of both arms.
        group: compare only this group of items.
    """
    first = arm[0]
    items = None if group is None else [i for i, g in zip(first.items, first.groups, strict=True) if g == group]
    both = pair_values(arm, other, items)
    sign = 1.0 if first.higher_is_better else -1.0
    differences = sign * (both.arm - both.other)  # (seeds, items), positive where the arm is better
    n = len(both.items)
    enough = n > 1 and len(arm) > 1  # a variance over seeds and one over items need two of each
    return Comparison(
        metric=first.metric,
        group=group,
        arm=names[0],
        against=names[1],
        budget=budget,
        unit=first.unit,
        means=(float(both.arm.mean()), float(both.other.mean())) if n else (float("nan"), float("nan")),
        items=n,
        left_out=both.left_out,
        by_seed=tuple(differences.mean(1).tolist()) if n else (float("nan"),),
        difference=mean_difference(differences) if enough else None,
        tested=item_test(differences, first.kind == "right" and not first.clusters)
        if n > 1 and group is None
        else None,
        why=None if enough else reason(n, len(arm)),
    )


def reason(items: int, seeds: int) -> str:
    """Say why so few items or seeds allow no test."""
    if items == 0:
        return "no item has a value in every run"
    return "one item is too few for a test" if items == 1 else f"{seeds} seed is too few for a test"


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with verdicts, corrected as one family.

    Holm (1979) holds whatever the dependence between the comparisons; they share reference runs, so they are dependent.

    Raises:
        MissingExtraError: statsmodels is not installed.
    """
    found = pool_by_reference(comparisons)
    tested = [i for i, one in enumerate(found) if one.difference is not None]
    if not tested:
        return found
    values = holm([found[i].difference.p for i in tested])  # type: ignore[union-attr]
    for i, p in zip(tested, values, strict=True):
        found[i] = add_verdict(found[i], p, len(tested))
    return found


def pool_by_reference(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Pool the between-seed variance of arms compared with the same reference on the same items."""
    found = list(comparisons)
    together: dict[tuple[str, str, str | None], list[int]] = {}  # same reference, budget and items -> positions
    for i, one in enumerate(comparisons):
        if one.difference is not None:
            together.setdefault((one.against, one.budget, one.group), []).append(i)
    for places in together.values():
        differences = [there for i in places if (there := comparisons[i].difference) is not None]
        for i, difference in zip(places, pooled(differences), strict=True):
            found[i] = replace(found[i], difference=difference)
    return found


def add_verdict(one: Comparison, p: float, family: int) -> Comparison:
    """Return the comparison with its verdict and, if unclear, what it would take to see the effect."""
    assert one.difference is not None
    spread, effect = one.difference.spread, one.difference.effect
    level = ALPHA / family  # of Holm's first step, the strictest
    verdict: Verdict = "not distinguishable" if p > ALPHA else "better" if effect > 0 else "worse"
    # How much more data it would take is of interest only for an effect that was seen and is not significant.
    unclear = verdict == "not distinguishable" and effect != 0
    return replace(
        one,
        p_holm=p,
        family=family,
        verdict=verdict,
        detectable=detectable(spread, level),
        items_needed=items_needed(effect, spread, level) if unclear else None,
        seeds_needed=seeds_needed(effect, spread, level) if unclear else None,
    )


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's procedure.

    Raises:
        MissingExtraError: statsmodels is not installed.
    """
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError:
        raise MissingExtraError(
            "an experiment's statistics need statsmodels", hint=install_hint("experiment")
        ) from None
    return [float(p) for p in multipletests(values, method="holm")[1]]


RESAMPLES, SEED = 9_999, 0
BATCH = 1 << 22  # numbers in memory at once


@dataclass(frozen=True)
class ItemTest:
    """Test with items as the only source of chance; differences are averaged over seeds first.

    Args:
        p_sign_flip: p of the two-sided permutation test that flips signs; exact if differences are symmetric about 0.
        low: lower end of the 95 % bootstrap interval (BCa; Efron 1987) of the mean difference.
        high: upper end.
        p_mcnemar: p of the exact (binomial) McNemar test of each seed; None if values are not right or wrong.
        dz: Cohen's d_z, the mean difference in standard deviations of the differences; None if all are equal.
    """

    p_sign_flip: float
    low: float
    high: float
    p_mcnemar: tuple[float, ...] | None
    dz: float | None


def item_test(differences: FloatArray, right: bool) -> ItemTest:
    """Test whether these models differ, leaving aside that other seeds would give other models.

    Args:
        differences: (seeds, items), positive where the first arm is better.
        right: whether values were 0 or 1.
    """
    mean = differences.mean(0)  # (items,)
    same = bool(np.ptp(mean) == 0)
    deviation = float(mean.std(ddof=1)) if len(mean) > 1 else 0.0
    # All differences equal: resamples would be, too, and BCa divides by their variance.
    low, high = (float(mean[0]),) * 2 if same else bootstrap_interval(mean)
    return ItemTest(
        p_sign_flip=sign_flip(mean),
        low=low,
        high=high,
        p_mcnemar=tuple(mcnemar(row) for row in differences) if right else None,
        dz=None if same or deviation == 0 else float(mean.mean()) / deviation,
    )


def sign_flip(mean: FloatArray) -> float:
    """Return the two-sided p of the mean under random signs: exact for few items, from 9,999 draws for more."""
    if not mean.any():
        return 1.0
    found = stats.permutation_test(
        (mean,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),  # resamples at once
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def bootstrap_interval(mean: FloatArray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean over items."""
    found = stats.bootstrap(
        (mean,),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),
        rng=np.random.default_rng(SEED),
        method="BCa" if len(mean) <= 5000 else "percentile",  # the jackknife of BCa holds items x items numbers
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(differences: FloatArray) -> float:
    """Return the exact two-sided p of McNemar's test, on the items that only one of two models has right."""
    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    return 1.0 if first + second == 0 else float(stats.binomtest(first, first + second).pvalue)
