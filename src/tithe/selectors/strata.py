"""Splitting examples by a column, and a budget over the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tithe.errors import SettingsError, did_you_mean
from tithe.records import Scores
from tithe.selectors.budget import Budget

MISSING = "None"


def groups(scores: Scores, by: str) -> dict[str, list[int]]:
    """Label -> indices in input order; labels sorted, so that nothing hangs on which value comes first.

    Raises:
        SettingsError: if there is no such column.
    """
    if by not in scores.columns:
        raise SettingsError(f"there is no column `{by}` to stratify by", hint=did_you_mean(by, scores.columns))
    found: dict[str, list[int]] = {}
    for index, value in enumerate(scores.columns[by].tolist()):
        found.setdefault(_label(value), []).append(index)
    return dict(sorted(found.items()))


def quotas(rows: int, weights: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """Rows per label in proportion to the weights: `min(rows, all the room)` together, none above its room."""
    out = dict.fromkeys(weights, 0)
    rest = min(rows, sum(room.values()))
    open_ = [label for label in weights if room[label] > 0]
    while rest > 0:
        share = _largest_remainder(rest, {label: weights[label] for label in open_})
        full = [label for label in open_ if share[label] >= room[label]]
        if not full:
            return out | share
        for label in full:  # these are settled; what they cannot take is shared out among the others
            out[label] = room[label]
            rest -= room[label]
            open_.remove(label)
    return out


def share_out(
    scores: Scores, budget: Budget, queues: Mapping[str, Sequence[int]], weights: Mapping[str, int] | None
) -> list[int]:
    """The front of every queue: by quotas, or in turn for a token budget, which has none.

    Args:
        scores: what is chosen from.
        budget: how much may be kept.
        queues: label -> indices into `scores`, the one to keep first at the front.
        weights: label -> what quotas are in proportion to; None is an equal share for each.
    """
    rows = budget.rows(len(scores), sum(map(len, queues.values())))
    if rows is None:
        turns = interleave(queues, equal=weights is None)
        return [int(index) for index in budget.take(scores, np.array(turns, dtype=np.intp))]
    room = {label: len(queue) for label, queue in queues.items()}
    quota = quotas(rows, dict.fromkeys(queues, 1) if weights is None else weights, room)
    return [index for label, queue in queues.items() for index in queue[: quota[label]]]


def interleave(queues: Mapping[str, Sequence[int]], *, equal: bool = False) -> list[int]:
    """One order in which every front part has each queue in proportion to its length, or equally; best first."""
    place = [
        (rank if equal else (2 * rank + 1) / (2 * len(queue)), label, index)
        for label, queue in queues.items()
        for rank, index in enumerate(queue)
    ]
    return [index for _, _, index in sorted(place)]


def _largest_remainder(rows: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that add up to `rows`; in integers, so exactly."""
    total = sum(weights.values())
    out = {label: rows * weight // total for label, weight in weights.items()}
    by_rest = sorted(weights, key=lambda label: (-(rows * weights[label] % total), -weights[label], label))
    for label in by_rest[: rows - sum(out.values())]:
        out[label] += 1
    return out


def _label(value: Any) -> str:
    """A name for any cell, hashable or not; text `None` is `'None'` and so not the missing value."""
    missing = value is None or value != value  # only NaN differs from itself
    return MISSING if missing else repr(value)
