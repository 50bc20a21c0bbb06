"""Write the report of an experiment: an HTML page, its charts as files, and a CSV table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tithe.data.outfile import atomic
from tithe.lab.evaluate.comparison import Comparison, pair_values
from tithe.lab.experiment.cells import CELLS, TRAIN, CellResult
from tithe.lab.experiment.comparisons import PAGE, PLOTS, TABLE, ExperimentResult, Runs, order_by_budget, runs_of
from tithe.lab.experiment.reporter import arm_rows, cautions, data_lines, mean_rows, p_value, sentence
from tithe.lab.experiment.settings import ExperimentSettings
from tithe.report.charts import arm_chart, budget_chart, effect_chart, outcome_chart, svg, write_png
from tithe.report.page import Section, write_page

HOW = (
    "Differences are paired: the same items, the same seeds; an effect above 0 says that the arm is better. Held-out "
    "responses to one prompt are one item of a comparison, and their values are single ones in the means. Chance in "
    "the items and chance from seed to seed both count (two-way random effects); p is corrected for all arms and "
    "budgets of a metric after Holm. Intervals are of 95 %, not corrected."
)
READ = (
    "Points are means over the seeds; lines and bands go from the lowest seed to the highest. A model without a budget "
    "has a line or a row of its own."
)
COLOURS = "Green is better and orange worse than the arm compared with, in all charts; other colours only name arms."
ITEMS = "These very models: tests that take the items as drawn by chance, and say nothing about other seeds."
SHOWN = 3  # records shown of each arm
LONGEST = 300  # characters shown of a record


def write_report(result: ExperimentResult, settings: ExperimentSettings) -> Path:
    """Write `report.html`, `plots/*.png` and `comparisons.csv` into the experiment's folder.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
    """
    assert result.results is not None
    plots = result.folder / PLOTS
    plots.mkdir(exist_ok=True)
    metrics = list(dict.fromkeys(one.metric for one in result.results.means))
    parts = [summary_part(result, metrics[0]), caveat_part(result)]
    for metric in metrics:
        parts += metric_parts(metric, result, settings, plots)
    parts += closing_parts(result, settings)
    write_page(result.folder / PAGE, "Does the selection beat random?", parts)
    write_table(result, result.folder / TABLE)
    return result.folder / PAGE


def summary_part(result: ExperimentResult, metric: str) -> Section:
    assert result.results is not None
    record = result.record
    about = (
        f"{record['settings']['dataset']}, model {record['settings']['model']}, recipe {record['recipe']['digest']}, "
        f"{len(record['settings']['seeds'])} seeds, pool {record['data']['pool']:,}, "
        f"held out {record['data']['held_out']:,}"
    )
    own = [one for one in result.results.against if one.metric == metric]
    return Section(lines=[about], kind="note", verdicts=[(one.verdict.replace(" ", "-"), sentence(one)) for one in own])


def metric_parts(metric: str, result: ExperimentResult, settings: ExperimentSettings, plots: Path) -> list[Section]:
    """Make the parts of one metric: curve, effects, wins and losses, and tables."""
    assert result.results is not None
    runs = runs_of(metric, order_by_budget(result.outcomes, settings), settings)
    own = [one for one in result.results.against if one.metric == metric]
    means = [one for one in result.results.means if one.metric == metric]
    first = next(iter(runs.values()))[0]
    direction = "higher is better" if first.higher_is_better else "lower is better"
    rows, levels = curve_points(runs, result.record["arms"])
    draw = budget_chart if len({row["examples"] for row in rows}) > 1 else arm_chart
    charts = {"budget": draw(rows, levels, f"{metric}, {first.unit}, {direction}")}
    if own:
        effects = [effect_row(one) for one in own]
        charts["effects"] = effect_chart(effects, f"better than {own[0].against} by, {first.unit}")
        charts["outcomes"] = outcome_chart(
            outcome_rows(own, runs), f"items won, tied and lost against {own[0].against}"
        )
    for name, chart in charts.items():
        write_png(chart, plots / f"{file_name(metric)}-{name}.png")
    told = [f"{READ} {COLOURS if own else ''}".strip()]
    parts = [Section(f"{metric} ({direction})", told, "note", drawings=[svg(chart) for chart in charts.values()])]
    parts.append(Section(rows=mean_rows(means), lines=[HOW], kind="note"))
    parts.append(Section(rows=comparison_rows(own)))
    parts.append(Section(rows=item_rows(own), lines=[ITEMS], kind="note"))
    groups = [one for one in result.results.groups if one.metric == metric]
    if groups:
        parts.append(
            Section(
                f"{metric} by group",
                lines=["Corrected for all arms, budgets and groups together."],
                kind="note",
                rows=comparison_rows(groups, grouped=True),
            )
        )
    return parts


def curve_points(runs: Runs, arms: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the arms' points, and the levels of models without a budget."""
    examples = {(row["arm"], row["budget"]): row["examples"] for row in arms}
    rows, levels = list[dict[str, Any]](), dict[str, float]()
    for (arm, budget), found in runs.items():
        means = [one.mean for one in found]
        if (arm, budget) not in examples:
            levels[arm] = float(np.mean(means))
            continue
        point = {"arm": arm, "examples": examples[arm, budget], "mean": float(np.mean(means))}
        rows.append(point | {"low": min(means), "high": max(means)})
    return rows, levels


def effect_row(one: Comparison) -> dict[str, Any]:
    low, high = (one.difference.low, one.difference.high) if one.difference else (one.effect, one.effect)
    name = f"{one.arm} {one.budget}"
    return {"name": name, "effect": one.effect, "low": low, "high": high, "verdict": one.verdict}


def outcome_rows(comparisons: Sequence[Comparison], runs: Runs) -> list[dict[str, Any]]:
    """Return the shares of items that each arm wins, ties and loses, by the mean over seeds."""
    rows = []
    for one in comparisons:
        arm, other = runs[one.arm, one.budget], runs[one.against, one.budget]
        both = pair_values(arm, other)
        # Seeds are averaged first, so that an item counts once, as in the comparisons.
        sign = 1 if arm[0].higher_is_better else -1
        difference = sign * (both.arm - both.other).mean(0)  # (seeds, items) -> (items,)
        shares = {"win": difference > 0, "tie": difference == 0, "loss": difference < 0}
        rows += [
            {"name": f"{one.arm} {one.budget}", "outcome": outcome, "share": float(np.mean(mask))}
            for outcome, mask in shares.items()
        ]
    return rows


def comparison_rows(comparisons: Sequence[Comparison], *, grouped: bool = False) -> list[list[str]]:
    head = ["arm", "budget", *(["group"] if grouped else []), "effect", "95 %", "p", "p, Holm", "d_z", "verdict"]
    rows = [head]
    for one in comparisons:
        group = [one.group or ""] if grouped else []
        rows.append([one.arm, one.budget, *group, *numbers(one), one.verdict])
    return rows


def numbers(one: Comparison) -> list[str]:
    if one.difference is None:
        return [f"{one.effect:+.4f}", "", "", "", ""]
    low, high = one.difference.low, one.difference.high
    dz = "" if one.tested is None or one.tested.dz is None else f"{one.tested.dz:+.3f}"
    return [
        f"{one.effect:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        p_value(one.difference.p),
        p_value(one.p_holm),
        dz,
    ]


def item_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    rows = [["arm", "budget", "items", "left out", "bootstrap 95 %", "sign-flip p", "McNemar p by seed", "by seed"]]
    for one in comparisons:
        if one.tested is None:
            continue
        mcnemar = "" if one.tested.p_mcnemar is None else ", ".join(map(p_value, one.tested.p_mcnemar))
        interval = f"{one.tested.low:+.4f} to {one.tested.high:+.4f}"
        seeds = ", ".join(f"{effect:+.4f}" for effect in one.by_seed)
        counts = [f"{one.items:,}", f"{one.left_out:,}"]
        rows.append([one.arm, one.budget, *counts, interval, p_value(one.tested.p_sign_flip), mcnemar, seeds])
    return rows


def closing_parts(result: ExperimentResult, settings: ExperimentSettings) -> list[Section]:
    """Make the last parts: other comparisons, training, data and settings."""
    assert result.results is not None
    parts = []
    for title, family in (("Against the full set", result.results.full), ("References", result.results.references)):
        if family:
            parts.append(Section(title, verdicts=[(one.verdict.replace(" ", "-"), sentence(one)) for one in family]))
    outcomes = order_by_budget(result.outcomes, settings)
    parts += [training_part(outcomes), *record_samples(result.folder, outcomes)]
    parts.append(Section("Data", lines=list(data_lines(result.record))))
    parts.append(Section(rows=arm_rows(result.record)))
    all_settings = {name: result.record[name] for name in ("settings", "recipe", "model", "versions")}
    parts.append(Section("Settings", text=yaml.safe_dump(all_settings, sort_keys=False, allow_unicode=True)))
    return parts


def write_table(result: ExperimentResult, path: Path) -> None:
    """Write every comparison as a line of CSV."""
    columns, rows = verdict_table(result)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    with atomic(path, overwrite=True) as stream:
        stream.write(text.getvalue().encode(errors="backslashreplace"))


def verdict_table(result: ExperimentResult) -> tuple[list[str], list[list[Any]]]:
    """Return the heads and lines of the table of all comparisons; None for no value."""
    assert result.results is not None
    names = ("metric", "group", "arm", "against", "budget", "unit", "effect", "relative", "items", "left_out")
    more = ("p_holm", "family", "verdict", "detectable", "items_needed", "seeds_needed")
    rows: list[list[Any]] = []
    for one in (*result.results.against, *result.results.groups, *result.results.full, *result.results.references):
        found = one.difference
        test = [None] * 3 if found is None else [found.low, found.high, found.p]
        rows.append([*(getattr(one, name) for name in names), *test, *(getattr(one, name) for name in more)])
    return [*names, "low", "high", "p", *more], rows


def file_name(metric: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in metric)


def caveat_part(result: ExperimentResult) -> Section:
    """List what limits the verdicts, including all that the terminal shows."""
    lines = list(cautions(result.record))
    seeds = len(result.record["settings"]["seeds"])
    lines += [] if result.results is None else unmeasured(result.results.against)
    lines.append(f"these verdicts are of {seeds} seeds, of this model, data and recipe.")
    return Section("Before you believe it", verdicts=[("", line) for line in lines])


def unmeasured(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield for each metric how many items are compared, and how many have no value."""
    for metric in dict.fromkeys(one.metric for one in comparisons):
        own = [one for one in comparisons if one.metric == metric]
        items, left_out = min(one.items for one in own), max(one.left_out for one in own)
        yield f"{metric} is compared on {items:,} items" + (
            f"; {left_out:,} of those measured have no value in some run, and are in no comparison" if left_out else ""
        )


def training_part(outcomes: Sequence[CellResult]) -> Section:
    """Make the table of every training: steps and loss."""
    rows = [["arm", "budget", "seed", "steps", "loss, first step", "loss, last step", "seconds"]]
    for one in outcomes:
        done: Mapping[str, Any] | None = one.record["training"]
        if done is None:
            continue
        losses = (f"{done['first_loss']:.4f}", f"{done['last_loss']:.4f}")
        cell = one.cell
        rows.append(
            [cell.arm, str(cell.budget), str(cell.seed), f"{done['steps']:,}", *losses, f"{one.record['seconds']:.1f}"]
        )
    note = (
        "The loss is the mean NLL of the response tokens in a step's batch, in nats per token. Arms are trained on "
        "different examples: compare the losses within an arm only."
    )
    return Section("Training", lines=[note], kind="note", rows=rows)


def record_samples(folder: Path, outcomes: Sequence[CellResult]) -> Iterator[Section]:
    """Yield a table of the first records that each arm trained on, with its first seed and budget."""
    rows, seen = [["arm", "record"]], set[str]()
    for one in outcomes:
        if one.record["training"] is None or one.cell.arm in seen:
            continue
        seen.add(one.cell.arm)
        for text in first_records(folder / CELLS / one.trained / TRAIN):
            rows.append([f"{one.cell.arm}, {one.cell.budget}", text])
    if len(rows) > 1:
        note = f"The first {SHOWN} records of each arm in the order of the data: a sample, and not the best ones."
        yield Section("What the arms chose", lines=[note], kind="note", rows=rows)


def first_records(path: Path) -> list[str]:
    """Return a few records, shortened; none if the file was removed."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        return [short(line) for line in islice(stream, SHOWN)]


def short(line: str) -> str:
    """Return the texts of a record without field names and empty values, cut to a readable length."""
    record = json.loads(line)
    said = " | ".join(words_of(record)) or line
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."


def words_of(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip():
        yield " ".join(value.split())
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in ("role", "from", "id", "type"):
                yield from words_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from words_of(one)
