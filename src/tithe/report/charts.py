"""Draw an experiment's charts, as SVG and PNG: a metric against the budget, effects with intervals, wins and losses."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import MissingExtraError
from tithe.extras import install_hint


def library(name: str) -> Any:
    """Import a package of the extra `report`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"a plot needs the package `{name}`", hint=install_hint("report")) from None


def svg(chart: Any) -> str:
    """Return a chart as an SVG element."""
    return str(library("vl_convert").vegalite_to_svg(json.dumps(chart.to_dict())))


def write_png(chart: Any, path: Path) -> None:
    """Write a chart to a PNG file, twice as large as on a page; replaces an existing file."""
    with atomic(path, overwrite=True) as stream:
        stream.write(library("vl_convert").vegalite_to_png(json.dumps(chart.to_dict()), scale=2))


WIDTH = 560
# Colours of arms; green, orange and grey are left for better, worse and neither.
COLOURS = ("#1f5fa8", "#8a4fb0", "#b0901e", "#c03a8a", "#3aa0c0", "#5a4632", "#3b3b8f", "#8fa8d8")
WORSE, SAME, BETTER = "#c8501e", "#c9c9c9", "#2a8a5c"


def budget_chart(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, float], title: str) -> Any:
    """Draw a metric against the number of examples, with a band from the lowest to the highest seed.

    Args:
        rows: rows of `arm, examples, mean, low, high`.
        levels: name -> value of models without a budget, drawn as horizontal lines.
        title: title of the metric's axis.
    """
    alt = library("altair")
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows]))
    x = alt.X("examples:Q", title="examples trained on", scale=alt.Scale(type="log", nice=False, padding=20))
    y = alt.Scale(zero=False)
    names = list(dict.fromkeys(row["arm"] for row in rows))
    scale = alt.Scale(domain=names, range=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    colour = alt.Color("arm:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1, orient="top"))
    band = base.mark_area(opacity=0.15).encode(x=x, y=alt.Y("low:Q", scale=y), y2="high:Q", color=colour)
    bars = base.mark_rule(opacity=0.5).encode(x=x, y=alt.Y("low:Q", scale=y), y2="high:Q", color=colour)
    line = base.mark_line(point=True).encode(x=x, y=alt.Y("mean:Q", scale=y, title=title), color=colour)
    chart = band + bars + line  # the bars are for arms with one budget, which have no band
    if levels:
        marks = alt.Chart(alt.Data(values=[{"value": value, "what": what} for what, value in levels.items()]))
        chart += marks.mark_rule(strokeDash=[5, 4], color="#888888").encode(y=alt.Y("value:Q", scale=y))
        chart += marks.mark_text(align="left", baseline="middle", dx=4, color="#555555").encode(
            y="value:Q", text="what:N", x=alt.value(WIDTH)
        )
    return chart.properties(width=WIDTH, height=300)


def arm_chart(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, float], title: str) -> Any:
    """Draw the arms of one budget below each other: the mean, and a line from the lowest to the highest seed.

    Args:
        rows: rows of `arm, examples, mean, low, high`.
        levels: name -> value of models without a budget, each in its own row.
        title: title of the metric's axis.
    """
    alt = library("altair")
    others = [{"arm": name, "mean": value, "low": value, "high": value} for name, value in levels.items()]
    base = alt.Chart(alt.Data(values=[*map(dict, rows), *others]))
    y = alt.Y("arm:N", title=None, sort=None, axis=alt.Axis(labelLimit=240, grid=True))
    scale = alt.Scale(zero=False, padding=12)
    colour = alt.value(COLOURS[0])
    reach = base.mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", color=colour
    )
    point = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, x=alt.X("mean:Q", scale=scale), color=colour)
    return (reach + point).properties(width=WIDTH, height=max(60, 26 * (len(rows) + len(others))))


def effect_chart(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Draw effects with their intervals, one row each; better is to the right.

    Args:
        rows: rows of `name, effect, low, high, verdict`.
        title: title of the effect's axis.
    """
    alt = library("altair")
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows]))
    y = alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=240))
    kinds = ["better", "worse", "not distinguishable", "no verdict"]
    colour = alt.Color("verdict:N", title=None, scale=alt.Scale(domain=kinds, range=[BETTER, WORSE, "#777", "#bbb"]))
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[5, 4], color="#888888").encode(x="zero:Q")
    reach = base.mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=7)), x2="high:Q", color=colour
    )
    point = base.mark_point(filled=True, size=60, opacity=1).encode(y=y, x="effect:Q", color=colour)
    return (zero + reach + point).properties(width=WIDTH, height=max(60, 22 * len(rows)))


def outcome_chart(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Draw the shares of items won, tied and lost, one bar per name.

    Args:
        rows: rows of `name, outcome, share`, where `outcome` is `win`, `tie` or `loss`.
        title: title of the share's axis.
    """
    alt = library("altair")
    kinds = ["win", "tie", "loss"]
    values = [{**row, "order": kinds.index(row["outcome"])} for row in rows]  # wins first, not in alphabetical order
    colour = alt.Color("outcome:N", title=None, scale=alt.Scale(domain=kinds, range=[BETTER, SAME, WORSE]))
    bars = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=240)),
            x=alt.X("share:Q", title=title, stack="zero", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=colour,
            order="order:Q",
        )
    )
    half = alt.Chart(alt.Data(values=[{"half": 0.5}])).mark_rule(strokeDash=[5, 4], color="#444").encode(x="half:Q")
    return (bars + half).properties(width=WIDTH, height=max(60, 22 * len({row["name"] for row in rows})))
