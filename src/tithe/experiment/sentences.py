"""Verdicts in words."""

from __future__ import annotations

from tithe.evaluate.verdict import Comparison


def sentence(one: Comparison) -> str:
    """What may be said of an arm at a budget, with what it rests on."""
    head = f"{one.arm} at {one.budget}" if one.group is None else f"{one.arm} at {one.budget}, {one.group}"
    if one.verdict == "no verdict":
        return f"{head}: no verdict on {one.metric}, {one.why}"
    assert one.difference is not None and one.detectable is not None
    how = f"{amount(one)} (95 % interval {interval(one)}, p {p_value(one.p_holm)} after Holm over {one.family})"
    if one.verdict in ("better", "worse"):
        return f"{head}: {one.verdict} than {one.against} on {one.metric} by {how}"
    return f"{head}: not distinguishable from {one.against} on {one.metric}, {how}; {seen(one)}; {needed(one)}"


def amount(one: Comparison) -> str:
    """The effect's size with its unit, without a sign where the words say the direction."""
    size = abs(one.effect) if one.verdict in ("better", "worse") else one.effect
    sign = "" if one.verdict in ("better", "worse") else "+" if one.effect > 0 else ""
    if one.unit == "right":
        return f"{sign}{100 * size:.2f} points"
    share = "" if one.relative is None else f", {abs(100 * one.relative):.2f} %"
    return f"{sign}{size:.4g} {one.unit}{share}"


def interval(one: Comparison) -> str:
    """Of the amount: how much worse, where it is worse."""
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
    return f"an effect of {size} would have been seen with a power of 80 %"


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
        return "to show one as small as this, more seeds and more items would be needed together"
    return f"to show one as small as this, {' or '.join(ways)} would be needed"


def p_value(p: float | None) -> str:
    return "unknown" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
