"""Order a large data set so that an example and those that show it as a shot meet in one window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def order_by_shots(ids: Sequence[str], shown: Sequence[str | None]) -> list[int]:
    """Put examples next to the ones they show, and otherwise leave them in order.

    Args:
        ids: distinct ids of the examples.
        shown: per example the id of its first worked example, which may be in another data set; None without one.

    Returns:
        A permutation of the indices. Families (examples connected by showing one another) come in the order of their
        first members; a family is listed breadth first.
    """
    near: dict[str, list[str]] = defaultdict(list)
    for one, other in zip(ids, shown, strict=True):
        if other is not None and other != one:
            near[other].append(one)
            near[one].append(other)
    place = {one: i for i, one in enumerate(ids)}
    order, seen = list[int](), set[str]()
    for first in ids:
        if first in seen:
            continue
        seen.add(first)
        family = [first]
        for member in family:  # the list grows while it is iterated
            new = [other for other in dict.fromkeys(near[member]) if other not in seen]
            seen.update(new)
            family += new
        order += [place[member] for member in family if member in place]
    return order
