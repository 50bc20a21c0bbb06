"""The order in which a large data set is read, so that an example and those that show it meet in one window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def together(ids: Sequence[str], shown: Sequence[str | None]) -> list[int]:
    """Put examples next to the ones they show, and otherwise leave them in order.

    Args:
        ids: of the examples, all different.
        shown: per example the id of the one that it shows first, of these or from elsewhere; None where it shows none.

    Returns:
        A permutation of the places: families of examples that show one another in the order of their first members;
        within a family whoever stands next to a member in that sense follows soon after it.
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
        for member in family:  # grows as it is walked
            new = [other for other in dict.fromkeys(near[member]) if other not in seen]
            seen.update(new)
            family += new
        order += [place[member] for member in family if member in place]
    return order
