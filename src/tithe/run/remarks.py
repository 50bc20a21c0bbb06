"""What only all scores together show: that a model does not answer what scorers ask it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from tithe.run.bench import Bench
from tithe.run.table import Table
from tithe.scorers.base import Scorer
from tithe.scorers.rated import MASS

LITTLE = 0.5  # less probability than that on all replies together, and most of the model's mind is elsewhere


def remark(scorers: Mapping[str, Scorer], table: Table, bench: Bench) -> None:
    """Note how much probability lies on the replies that a scorer reads, and say so where that is little."""
    for name, scorer in scorers.items():
        if MASS not in scorer.also:
            continue
        there = [value for value in table.columns[f"{name}_{MASS}"] if value is not None]
        if not there:
            continue
        bench.who, middle = name, median(there)
        bench.note("median_mass", round(middle, 4))
        if middle < LITTLE:
            bench.say(
                f"note: {name}: the replies it looks at have {middle:.2g} of the probability, in the median: "
                "this model hardly answers with them, and the score means little"
            )
