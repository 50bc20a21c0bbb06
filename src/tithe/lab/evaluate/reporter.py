"""Print the result of an evaluation to stderr: one line per metric, with its interval."""

from __future__ import annotations

from collections import Counter

import numpy as np
from rich.table import Table as Grid

from tithe.lab.evaluate.evaluation import EvaluateResult
from tithe.lab.evaluate.measured import Measured
from tithe.report.terminal import console, say

LEVEL = 0.95


def show_evaluation(result: EvaluateResult) -> None:
    """Print means and 95 % intervals, items without a value, notes, and where the files are."""
    out = console()
    grid = Grid("metric", "items", "mean", "95 % interval", "unit", box=None, pad_edge=False)
    for name in ("items", "mean", "95 % interval"):
        next(column for column in grid.columns if column.header == name).justify = "right"
    for one in result.measured:
        unit = one.unit if one.higher_is_better else f"{one.unit}, lower is better"
        cells = (one.metric, f"{len(one.items):,}", mean_text(one), interval_text(one), unit)
        grid.add_row(*cells)
    out.print(grid)
    for one in result.measured:
        for reason, n in Counter(one.problems.values()).most_common():
            say(out, f"`{one.metric}`, without a value, {n:,}: {reason}")
        confined = (one.about.get("execution") or {}).get("confined", {})
        for how in dict.fromkeys(confined.values()):
            kept_from = ", ".join(what for what, means in confined.items() if means == how)
            say(out, f"`{one.metric}`: generated code was confined by {how}: {kept_from}")
    for note in result.notes:
        say(out, f"note: {note}")
    work = result.record["work"]
    again = f", found in the folder: {', '.join(work['reused'])}" if work["reused"] else ""
    say(out, f"measured now: {', '.join(work['computed']) or 'nothing'}{again}")
    say(out, f"written: {result.folder} (evaluation.json, items.parquet)")


def mean_text(one: Measured) -> str:
    return f"{one.mean:.4g}" if len(one.items) else "-"


def interval_text(one: Measured) -> str:
    """Return the interval of the mean as text; one item has none."""
    if not len(one.items):
        return "none: no item has a value"
    if len(one.items) == 1:
        return "none: one item"
    low, high = interval(one)
    return f"{low:.4g} to {high:.4g}"


def interval(one: Measured) -> tuple[float, float]:
    """Return the 95 % interval of the mean of at least two items: Wilson's for 0 and 1, Student's for other numbers."""
    from scipy import stats

    n = len(one.values)
    if one.kind == "right":
        found = stats.binomtest(round(float(one.values.sum())), n).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(one.values, ddof=1) / np.sqrt(n))
    return one.mean - half, one.mean + half
