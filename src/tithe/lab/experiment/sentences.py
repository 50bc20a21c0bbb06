"""Verdicts in words."""

from __future__ import annotations

from tithe.lab.evaluate.verdict import Comparison

UNTRAINED, AGAINST = "untrained", " against "  # how the budgets of two sides are written where they differ


def sentence(one: Comparison) -> str:
    """What may be said of an arm at a budget, with what it rests on."""
    head, against = sides(one)
    if one.verdict == "no verdict":
        return f"{head}: no verdict on {one.metric}, {one.why}"
    assert one.difference is not None and one.detectable is not None
    clear = one.verdict in ("better", "worse")
    what = "interval" if clear else "interval of the gain"
    how = f"{amount(one)} (95 % {what} {interval(one)}, p {p_value(one.p_holm)} after Holm over {one.family})".lstrip()
    if clear:
        return f"{head}: {one.verdict} than {against} on {one.metric} by {how}"
    way = "the means are equal" if one.effect == 0 else f"the mean is {'better' if one.effect > 0 else 'worse'} by"
    return f"{head}: not distinguishable from {against} on {one.metric}: {way} {how}; {seen(one)}; {needed(one)}"


def sides(one: Comparison) -> tuple[str, str]:
    """Name the arm and what it is compared with; the budgets stand beside them where they differ."""
    own, _, other = one.budget.partition(AGAINST)
    head = f"{one.arm} ({own})" if own == UNTRAINED else f"{one.arm} at {own}"
    against = f"{one.against} at {other}" if other else one.against
    return head if one.group is None else f"{head}, {one.group}", against


def amount(one: Comparison) -> str:
    """Return the effect's size with its unit; the words before it say the direction."""
    if one.effect == 0:
        return ""
    size = abs(one.effect)
    if one.unit == "right":
        return f"{100 * size:.2f} points"
    share = "" if one.relative is None else f", {abs(100 * one.relative):.2f} %"
    return f"{size:.4g} {one.unit}{share}"


def interval(one: Comparison) -> str:
    """Return the interval of what the sentence says: how much worse where it is worse, else how much better."""
    assert one.difference is not None
    scale, digits = (100, 2) if one.unit == "right" else (1, 4)
    low, high = scale * one.difference.low, scale * one.difference.high
    if one.verdict == "worse":
        low, high = -high, -low
    sign = "" if one.verdict in ("better", "worse") else "+"
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def seen(one: Comparison) -> str:
    """Which effects this much data would have shown."""
    assert one.detectable is not None
    size = f"{100 * one.detectable:.1f} points" if one.unit == "right" else f"{one.detectable:.3g} {one.unit}"
    return f"a difference of {size} would have been seen with a power of 80 %"


def needed(one: Comparison) -> str:
    """How much data would show the effect found, if it is the true one."""
    ways = []
    if one.seeds_needed is not None:
        ways.append(f"{one.seeds_needed:,} seeds")
    if one.items_needed is not None:
        ways.append(f"{one.items_needed:,} items")
    if one.effect == 0:
        return "no difference was found"
    if not ways:
        return "to show one as small as the one found, more seeds and more items would be needed together"
    return f"to show one as small as the one found, {' or '.join(ways)} would be needed"


def p_value(p: float | None) -> str:
    return "unknown" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
