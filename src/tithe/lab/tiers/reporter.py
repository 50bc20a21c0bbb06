"""Print tiers on stderr: how they were built or imported, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from tithe.lab.tiers.building import TierResult
from tithe.lab.tiers.look import QUANTILES
from tithe.lab.tiers.tier_rows import TIERS
from tithe.report.terminal import console, pairs, say

MOST_MODELS, MOST_REASONS = 10, 5  # shown at most


def show_built(result: TierResult, output: Path, folder: Path) -> None:
    """Print the counts of prompts, what each weak model did, and what is in the tiers."""
    out, counts = console(), result.record["counts"]
    rows = [("prompts read", counts["asked"]["prompts"])]
    rows += bad_rows("prompts", counts["asked"])
    if "strong" in counts:
        rows += [("strong responses read", counts["strong"]["prompts"]), *bad_rows("strong", counts["strong"])]
        rows += [("strong responses to no prompt, left out", counts["strong_responses_unused"])]
        rows += [("prompts without a strong response, left out", counts["without_strong_response"])]
    rows += [("prompts not drawn", counts["not_drawn"])] if counts["not_drawn"] else []
    out.print(pairs([*rows, ("= prompts asked again", counts["prompts"])]))
    for name, model in result.record["weak_models"].items():
        say(
            out,
            f"{name}: {model['answers']:,} answers ({model['unfinished']:,} cut off, {model['reused']:,} found here)",
        )
        reasons = list(model["problems"].items())
        for reason, n in reasons[:MOST_REASONS]:
            say(out, f"{name}: no answer to {n:,} prompts: {reason}")
        if len(reasons) > MOST_REASONS:
            rest = sum(n for _, n in reasons[MOST_REASONS:])
            say(out, f"{name}: no answer to {rest:,} prompts for {len(reasons) - MOST_REASONS:,} other reasons")
    show_look(result)
    say(out, f"written: {output}, {len(result.rows):,} records; run folder {folder}")


def bad_rows(what: str, counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the rows that were left out, with reasons."""
    rows = [("  the same prompt again, left out", counts["repeated_prompts"])] if counts["repeated_prompts"] else []
    return rows + [(f"  bad row of the {what}: {reason}", n) for reason, n in counts["bad_rows"].items()]


def show_imported(result: TierResult, output: Path) -> None:
    show_look(result)
    say(console(), f"written: {output}, {len(result.rows):,} records")


def show_look(result: TierResult) -> None:
    """Print a table with a column per tier, and remarks below."""
    out, look = console(), result.look
    grid = Grid("", *TIERS, box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify = "right"
    add_row(grid, "responses", look["responses"])
    add_models(grid, look["models"])
    for one in look["lengths"]:
        for name in QUANTILES:
            add_row(grid, f"{one['unit']}, {name}", {tier: f"{one[tier][name]:,.0f}" for tier in TIERS if one[tier]})
    add_duplicates(grid, look["duplicates"])
    for name in ("refusals", "unfinished"):
        add_row(grid, name, {tier: percent_of(look[name][tier], look["responses"][tier]) for tier in TIERS})
    out.print(grid)
    say_remarks(out, look)


def add_models(grid: Grid, found: Mapping[str, Mapping[str, int]]) -> None:
    """Add a line per model, in whichever tier; only the first of many."""
    names = list(dict.fromkeys([*found["high"], *found["low"]]))
    for name in names[:MOST_MODELS]:
        add_row(grid, f"  by {name}", {tier: found[tier].get(name, "") for tier in TIERS})
    if len(names) > MOST_MODELS:
        add_row(grid, f"  and {len(names) - MOST_MODELS:,} more models", {})


def add_duplicates(grid: Grid, found: Mapping[str, Any]) -> None:
    """Add the four shares of duplicates of each tier."""
    for kind, words in (("equal", "the same text"), ("near", "nearly the same text")):
        add_row(grid, f"{words} in its own tier", {tier: percent(found[f"{kind}_within_{tier}"]) for tier in TIERS})
        across = {"high": percent(found[f"{kind}_high_in_low"]), "low": percent(found[f"{kind}_low_in_high"])}
        add_row(grid, f"{words} in the other tier", across)


def say_remarks(out: Console, look: Mapping[str, Any]) -> None:
    """Print what the table has no column for: prompts, bad rows, AUC of length, method, warnings."""
    prompts = look["prompts"]
    say(
        out,
        f"{prompts['all']:,} prompts: {prompts['both']:,} with both tiers, {prompts['only_high']:,} with high alone, "
        f"{prompts['only_low']:,} with low alone",
    )
    reasons = list(look["bad_rows"].items())
    for reason, n in reasons[:MOST_REASONS]:
        say(out, f"set aside, {n:,}: {reason}")
    if len(reasons) > MOST_REASONS:
        rest = sum(n for _, n in reasons[MOST_REASONS:])
        say(out, f"set aside, {rest:,}: {len(reasons) - MOST_REASONS:,} other reasons")
    for one in look["lengths"]:
        if one["auc"] is not None:
            say(
                out,
                f"AUC of length alone, in {one['unit']}: {one['auc']:.3f} (0.5 tells nothing, above it high is longer)",
            )
    say(out, f"nearly the same: {look['duplicates']['method']}")
    for text in look["warnings"]:
        say(out, f"warning: {text}")


def add_row(grid: Grid, name: str, values: Mapping[str, Any]) -> None:
    cells = [values.get(tier, "") for tier in TIERS]
    grid.add_row(name, *(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells))


def percent_of(n: int | None, whole: int) -> str:
    return percent(n / whole if n is not None and whole else None)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
