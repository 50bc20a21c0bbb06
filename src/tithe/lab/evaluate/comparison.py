"""Two ways of choosing data, compared on one metric, and what may be said of it."""

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
class Matched:
    """Values of two arms on the same items, seed by seed.

    Args:
        arm: (seeds, items).
        other: (seeds, items).
        items: their ids, or those of their clusters.
        left_out: items that lack a value in some run.
    """

    arm: FloatArray
    other: FloatArray
    items: tuple[str, ...]
    left_out: int


@dataclass(frozen=True)
class Comparison:
    """An arm against another at one budget, on one metric or one group of its items.

    Args:
        metric: its name.
        group: of its items; None for all.
        arm: name.
        against: name.
        budget: of both.
        unit: of values and effects.
        means: of the arm and of the other, over items and seeds.
        items: items that all runs have a value of; where some share a prompt, prompts.
        left_out: items that some run has no value of.
        by_seed: effect of each seed.
        difference: test and interval with seeds and items as chance; None where there is one item.
        tested: these models alone, with items as chance; not made for groups.
        p_holm: `difference.p`, corrected for all comparisons of the family.
        family: how many they are.
        verdict: at the 5 % level, by `p_holm`.
        detectable: smallest effect that would be seen with a power of 80 % at the first step of Holm's procedure.
        items_needed: to see the effect found, with these seeds; None where no number is enough.
        seeds_needed: to see it on these items; None where no number is enough.
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
        """Positive where the arm is better, in the metric's unit."""
        return float(np.mean(self.by_seed))

    @property
    def relative(self) -> float | None:
        """The effect as a share of the other arm's mean; None where that is 0."""
        return self.effect / abs(self.means[1]) if self.means[1] else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"effect": self.effect, "relative": self.relative}


def matched(arm: Sequence[Measured], other: Sequence[Measured], items: Sequence[str] | None = None) -> Matched:
    """The items that every run has a value of; one run per seed, in the same order on both sides."""
    runs = [*arm, *other]
    first = runs[0]
    if items is None and all(run.items == first.items and not run.problems for run in runs):
        both = Matched(np.stack([one.values for one in arm]), np.stack([one.values for one in other]), first.items, 0)
        return by_cluster(both, first.clusters)
    there = set.intersection(*(set(run.items) for run in runs))
    known = {item: None for run in runs for item in (*run.items, *run.problems)}  # in order
    asked = known if items is None else set(items)
    wanted = [item for item in known if item in asked]
    common = tuple(item for item in wanted if item in there)
    values = [np.stack([run.only(common).values for run in side]) for side in (arm, other)]
    both = Matched(values[0], values[1], common, len(wanted) - len(common))
    return by_cluster(both, first.only(common).clusters)


def by_cluster(both: Matched, clusters: Sequence[str]) -> Matched:
    """Items that depend on each other are one: several responses to a prompt count as their mean.

    A test that took them for independent would find more in them than there is.
    """
    if not clusters:
        return both
    names, of_item = np.unique(np.array(clusters), return_inverse=True)
    weights = (of_item[:, None] == np.arange(len(names))[None, :]).astype(np.float64)  # (items, clusters)
    weights /= weights.sum(0)
    return Matched(both.arm @ weights, both.other @ weights, tuple(names.tolist()), both.left_out)


def compare(
    arm: Sequence[Measured],
    other: Sequence[Measured],
    *,
    names: tuple[str, str],
    budget: str,
    group: str | None = None,
) -> Comparison:
    """Compare two arms; the verdict waits for `corrected`, which knows what else is compared.

    Args:
        arm: one measurement per seed.
        other: of the same metric, one per seed, in the same order.
        names: of both.
        budget: of both.
        group: only this group of items.
    """
    first = arm[0]
    items = None if group is None else [i for i, g in zip(first.items, first.groups, strict=True) if g == group]
    both = matched(arm, other, items)
    sign = 1.0 if first.higher_is_better else -1.0
    differences = sign * (both.arm - both.other)
    n = len(both.items)
    enough = n > 1 and len(arm) > 1
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
    if items == 0:
        return "no item has a value in every run"
    return "one item says nothing about others like it" if items == 1 else f"{seeds} seed says nothing about others"


def corrected(comparisons: Sequence[Comparison], alpha: float = ALPHA) -> list[Comparison]:
    """Verdicts for comparisons that are made together: Holm (1979), which no dependence between them breaks.

    Raises:
        MissingExtraError: statsmodels is not installed.
    """
    found = steadied(comparisons)
    tested = [i for i, one in enumerate(found) if one.difference is not None]
    if not tested:
        return found
    values = holm([found[i].difference.p for i in tested])  # type: ignore[union-attr]
    for i, p in zip(tested, values, strict=True):
        found[i] = judged(found[i], p, len(tested), alpha)
    return found


def steadied(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Scatter from seed to seed taken together for arms that are compared with the same runs, on the same items."""
    found = list(comparisons)
    together: dict[tuple[str, str, str | None], list[int]] = {}
    for i, one in enumerate(comparisons):
        if one.difference is not None:
            together.setdefault((one.against, one.budget, one.group), []).append(i)
    for places in together.values():
        differences = [there for i in places if (there := comparisons[i].difference) is not None]
        for i, difference in zip(places, pooled(differences), strict=True):
            found[i] = replace(found[i], difference=difference)
    return found


def judged(one: Comparison, p: float, family: int, alpha: float) -> Comparison:
    assert one.difference is not None
    spread, effect, level = one.difference.spread, one.difference.effect, alpha / family
    verdict: Verdict = "not distinguishable" if p > alpha else "better" if effect > 0 else "worse"
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
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError:
        raise MissingExtraError(
            "an experiment's statistics need statsmodels", hint=install_hint("experiment")
        ) from None
    return [float(p) for p in multipletests(values, method="holm")[1]]


RESAMPLES = 9_999
BATCH = 1 << 22  # numbers held at once


@dataclass(frozen=True)
class ItemTest:
    """Items as the only source of chance; differences are means over the seeds.

    Args:
        p_sign_flip: two-sided permutation test that flips signs; exact for differences that are symmetric about 0.
        low: of the 95 % bootstrap interval (BCa; Efron 1987) of the mean difference.
        high: of it.
        p_mcnemar: per seed, exact (binomial) McNemar tests; None where values are not right or wrong.
        dz: mean difference in standard deviations of the differences (Cohen's d_z); None where they are all the same.
    """

    p_sign_flip: float
    low: float
    high: float
    p_mcnemar: tuple[float, ...] | None
    dz: float | None


def item_test(differences: FloatArray, right: bool, seed: int = 0) -> ItemTest:
    """Test the models as they are.

    Args:
        differences: (seeds, items) of one set of models minus the other, positive where the first is better.
        right: values were 0 or 1.
        seed: of the resamples.
    """
    mean = differences.mean(0)
    same = bool(np.ptp(mean) == 0)
    deviation = float(mean.std(ddof=1)) if len(mean) > 1 else 0.0
    low, high = (float(mean[0]),) * 2 if same else bootstrap_interval(mean, seed)
    return ItemTest(
        p_sign_flip=sign_flip(mean, seed),
        low=low,
        high=high,
        p_mcnemar=tuple(mcnemar(row) for row in differences) if right else None,
        dz=None if same or deviation == 0 else float(mean.mean()) / deviation,
    )


def sign_flip(mean: FloatArray, seed: int) -> float:
    """Two-sided p of the mean under random signs: exact for few items, of 9,999 draws for more."""
    if not mean.any():
        return 1.0
    found = stats.permutation_test(
        (mean,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def bootstrap_interval(mean: FloatArray, seed: int) -> tuple[float, float]:
    found = stats.bootstrap(
        (mean,),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(mean)),
        rng=np.random.default_rng(seed),
        method="BCa" if len(mean) <= 5000 else "percentile",  # its jackknife takes items x items numbers
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(differences: FloatArray) -> float:
    """Exact two-sided p: of the items that only one model has right, how many are the first one's."""
    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    return 1.0 if first + second == 0 else float(stats.binomtest(first, first + second).pvalue)
