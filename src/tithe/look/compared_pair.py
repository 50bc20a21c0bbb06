"""Compare two rankings: what they share, where they agree, in which categories, and where they differ most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tithe.look.rankings import Ranking
from tithe.look.top_overlap import RankCorrelation, TopOverlap, correlate, top_overlaps
from tithe.records import FloatArray, IntArray

MOST_CATEGORIES = 30  # listed
FEWEST = 10  # examples of a category for its rank correlation
SHOWN_TOP = 10  # percent: the top whose shares are listed by category
NO_VALUE = "(none)"  # category of a record without one


@dataclass(frozen=True)
class Counts:
    """What became of the examples of two runs; `both + without` is in both, and adds up to each run with `only`.

    Args:
        examples: of each run.
        only: of each run, examples that the other has not.
        common: examples in both.
        without: of each run, common examples to which it gave no score.
        both: common examples with both scores: these are compared.
    """

    examples: tuple[int, int]
    only: tuple[int, int]
    common: int
    without: tuple[int, int]
    both: int


@dataclass(frozen=True)
class Category:
    """The agreement within one value of a column.

    Args:
        value: of the column.
        examples: compared examples with it.
        correlation: rank correlation among them; None where there are fewer than `FEWEST`, or one does not vary.
        tops: how many of them are in the first and in the second one's top `SHOWN_TOP` percent, and in both.
        shift: mean of the rank in the second ranking minus that in the first, in percent of all ranks: above 0, the
            second ranks them lower.
    """

    value: str
    examples: int
    correlation: float | None
    tops: tuple[int, int, int]
    shift: float


@dataclass(frozen=True)
class Differing:
    """An example that two rankings place differently.

    Args:
        id: of the example.
        row: of its record, in the first run's data set.
        turn: of the response.
        ranks: in each ranking, 1 the highest; equal scores share the mean of their ranks.
        scores: in each ranking.
        category: its value of the column asked for.
        text: the beginning of its prompt; empty if the data set cannot be read.
        response: the beginning of its response.
    """

    id: str
    row: int
    turn: int
    ranks: tuple[float, float]
    scores: tuple[float, float]
    category: str | None = None
    text: str = ""
    response: str = ""


@dataclass(frozen=True)
class Selected:
    """What two runs kept, if both kept by the scorer that is compared; of the examples in both runs.

    Args:
        kept: by each run.
        shared: by both.
        chance: kept by both if the two had nothing to do with each other.
    """

    kept: tuple[int, int]
    shared: int
    chance: float


@dataclass(frozen=True)
class ComparedPair:
    """How far two rankings agree.

    Args:
        names: labels of the two.
        scorers: their scorers.
        folders: their run folders.
        counts: what became of the examples.
        correlation: Spearman's, with its interval.
        tops: overlap of the tops.
        selected: overlap of what the runs kept.
        categories: the largest ones first.
        categories_left_out: number of further, smaller categories.
        differ: the examples whose ranks differ most.
    """

    names: tuple[str, str]
    scorers: tuple[str, str]
    folders: tuple[str, str]
    counts: Counts
    correlation: RankCorrelation
    tops: Sequence[TopOverlap]
    selected: Selected | None = None
    categories: Sequence[Category] = ()
    categories_left_out: int = 0
    differ: Sequence[Differing] = ()


@dataclass(frozen=True)
class Joined:
    """The examples that two rankings have in common and both score, in the first one's order.

    Args:
        ids: of the examples.
        places: (examples,) their places in the first ranking.
        a: (examples,) scores of the first ranking.
        b: (examples,) scores of the second.
        counts: of all examples.
    """

    ids: Sequence[str]
    places: IntArray
    a: FloatArray
    b: FloatArray
    counts: Counts
    _ranks: dict[str, FloatArray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, one: Ranking, other: Ranking) -> Joined:
        """Join two rankings by the ids of their examples, which are hashes of the content."""
        place = {id_: i for i, id_ in enumerate(other.ids)}
        common = [(i, place[id_]) for i, id_ in enumerate(one.ids) if id_ in place]
        pairs = np.array(common, dtype=np.int64).reshape(-1, 2)
        a, b = one.values[pairs[:, 0]], other.values[pairs[:, 1]]
        lacking = np.isnan(a), np.isnan(b)
        there = ~(lacking[0] | lacking[1])
        counts = Counts(
            (len(one.ids), len(other.ids)),
            (len(one.ids) - len(common), len(other.ids) - len(common)),
            len(common),
            (int(lacking[0].sum()), int(lacking[1].sum())),
            int(there.sum()),
        )
        places = pairs[there, 0].astype(np.int32)
        return cls([one.ids[i] for i in places.tolist()], places, a[there], b[there], counts)

    def ranks(self, which: str) -> FloatArray:
        """Return (examples,) ranks in `a` or `b`: 1 for the highest, the mean rank for equal scores."""
        from scipy.stats import rankdata

        if which not in self._ranks:
            values = self.a if which == "a" else self.b
            self._ranks[which] = np.asarray(rankdata(-values, method="average"), dtype=np.float64)
        return self._ranks[which]

    def order(self) -> IntArray:
        """Return places of the examples, those whose ranks differ most first."""
        return np.argsort(-np.abs(self.ranks("a") - self.ranks("b")), kind="stable").astype(np.int32)


def compare_pair(
    one: Ranking, other: Ranking, joined: Joined, categories: Mapping[str, str] | None, most: int
) -> ComparedPair:
    """Compare two rankings.

    Args:
        one: the first.
        other: the second.
        joined: their common examples.
        categories: id -> category; None for no comparison by category.
        most: how many of the examples that differ most are listed.
    """
    tops = top_overlaps(joined.a, joined.b)
    listed, left_out = ([], 0) if categories is None else by_category(joined, categories)
    columns = [one.run.examples.column(name) for name in ("row", "turn")]
    differ = []
    for i in joined.order()[:most].tolist():
        place, id_ = int(joined.places[i]), joined.ids[i]
        ranks = float(joined.ranks("a")[i]), float(joined.ranks("b")[i])
        row, turn = (int(column[place].as_py()) for column in columns)
        category = None if categories is None else categories.get(id_, NO_VALUE)
        differ.append(Differing(id_, row, turn, ranks, (float(joined.a[i]), float(joined.b[i])), category))
    return ComparedPair(
        (one.label, other.label),
        (one.scorer, other.scorer),
        (str(one.run.folder), str(other.run.folder)),
        joined.counts,
        correlate(joined.a, joined.b),
        tops,
        selected_by(one, other),
        listed,
        left_out,
        differ,
    )


def by_category(joined: Joined, categories: Mapping[str, str]) -> tuple[list[Category], int]:
    """Return the agreement in each category, the largest first, and how many are left out."""
    from tithe.look.agreement import top
    from tithe.look.top_overlap import top_size
    from tithe.run.table import rank_correlation

    if not joined.ids:
        return [], 0
    labels = [categories.get(id_, NO_VALUE) for id_ in joined.ids]
    size = top_size(SHOWN_TOP, len(labels))
    first, second = (set(top(values, size).tolist()) for values in (joined.a, joined.b))
    shifts = 100 * (joined.ranks("b") - joined.ranks("a")) / len(labels)
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    named = Counter(labels).most_common()
    found = []
    for label, count in named[:MOST_CATEGORIES]:
        mine = members[label]
        correlation = rank_correlation(joined.a[mine], joined.b[mine]) if count >= FEWEST else None
        tops = len(first.intersection(mine)), len(second.intersection(mine)), len((first & second).intersection(mine))
        found.append(Category(label, count, correlation, tops, float(shifts[mine].mean())))
    return found, len(named) - len(found)


def selected_by(one: Ranking, other: Ranking) -> Selected | None:
    """Return what both runs kept of their common examples; None unless both kept by these scorers."""
    if one.run is other.run or one.kept is None or other.kept is None:
        return None
    common = set(one.ids) & set(other.ids)
    kept, also = one.kept & common, other.kept & common
    chance = len(kept) * len(also) / len(common) if common else 0.0
    return Selected((len(kept), len(also)), len(kept & also), chance)
