"""The selector of the gate: keep the records that look sound, and say what the others look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tithe.records import Scores, Selection
from tithe.selectors.base import Selector, scored
from tithe.selectors.budget import Budget, groups, share_out


@dataclass(frozen=True)
class Gate(Selector):
    """Keeps the highest scores of `sound`; a reason names the likeliest kind of damage, and how likely it is.

    Args:
        by: a column; the same share of each of its values is kept.
    """

    name: ClassVar[str] = "gate"

    by: str | None = None

    def select(self, scores: Scores, budget: Budget) -> Selection:
        """Keep the most sound; of equals the first."""
        there = scored(scores)
        order = there[np.argsort(-scores.values[there], kind="stable")].tolist()
        if self.by is None:
            kept = budget.take(scores, np.array(order, dtype=np.intp)).tolist()
        else:
            places = {label: set(members) for label, members in groups(scores, self.by).items()}
            queues = {label: [i for i in order if i in members] for label, members in places.items()}
            kept = share_out(scores, budget, queues, {label: len(queue) for label, queue in queues.items()})
        looks, chance = scores.columns["sound_looks_like"], scores.columns["sound_looks_like_probability"]
        reasons = {i: f"looks like {looks[i]} ({chance[i]:.2f})" for i in order}
        return self.settle(scores, kept, "looks damaged", reasons)
