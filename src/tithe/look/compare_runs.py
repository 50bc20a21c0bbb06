"""Compare runs: how far scorers, models or settings agree on which examples come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tithe.errors import DataError, SettingsError, did_you_mean
from tithe.look.compared_pair import NO_VALUE, Differing, Joined, compare_pair
from tithe.look.comparison_text import ComparedRuns
from tithe.look.find_record import find_texts
from tithe.look.finished_run import FinishedRun
from tithe.look.rankings import Ranking, find_rankings, what_differs
from tithe.records import Example
from tithe.report.reporter import Reporter
from tithe.run.table import FIXED

DIFFERING = 10  # examples listed of each pair
TEXT = 200  # characters of a listed text


def compare(
    runs: Sequence[str | Path | FinishedRun],
    *,
    scorers: Sequence[str] = (),
    within: str | None = None,
    differ: int = DIFFERING,
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ComparedRuns:
    """Compare the rankings of runs.

    Args:
        runs: run folders; one with several scorers, or several. `RUN:SCORER` names one ranking.
        scorers: compare only these.
        within: a column of the data set, or of the score table, by whose values the agreement is listed too.
        differ: how many of the examples that differ most are listed of each pair.
        output: also write a page there.
        overwrite: replace a page that is there.
        reporter: prints progress.

    Raises:
        TitheError: a run cannot be read, there is nothing to compare, or the page cannot be written.
    """
    reporter = reporter or Reporter()
    if differ < 0:
        raise SettingsError(f"a number of records is listed, not {differ}")
    pairs = find_rankings(runs, scorers)
    opened = list({id(one.run): one.run for pair in pairs for one in pair}.values())
    if output is not None:
        from tithe.look.comparison_page import check_page

        check_page(output, overwrite, opened)
    joined = [Joined.of(*pair) for pair in pairs]
    check_common(pairs, joined)
    reporter.phase("comparing")
    try:
        categories = None if within is None else categories_of(opened, within)
        found = [compare_pair(*pair, each, categories, differ) for pair, each in zip(pairs, joined, strict=True)]
        wanted = {one.id for each in found for one in each.differ}
        texts, notes = find_texts(opened, wanted)
        found = [replace(each, differ=[with_text(one, texts.get(one.id)) for one in each.differ]) for each in found]
        result = ComparedRuns(
            found, [str(run.folder) for run in opened], what_differs(opened) if len(opened) > 1 else {}, within, notes
        )
        if output is not None:
            from tithe.look.comparison_page import write_comparison

            write_comparison(output, result, pairs, joined, opened, categories)
    finally:
        reporter.done()
    return result


def check_common(pairs: Sequence[tuple[Ranking, Ranking]], joined: Sequence[Joined]) -> None:
    """Refuse runs that have nothing in common.

    Raises:
        DataError: two runs have no example in common, or none with both scores.
    """
    for (one, other), each in zip(pairs, joined, strict=True):
        if each.counts.both:
            continue
        if not each.counts.common:
            raise DataError(
                f"the runs in `{one.run.folder}` and `{other.run.folder}` have no example in common",
                hint="examples are joined by the hash of their content: the data sets differ in every record",
            )
        raise DataError(
            f"no example has a score of both, `{one.label}` and `{other.label}`",
            hint="`problem` in `scores.parquet` says why an example has none",
        )


def categories_of(runs: Sequence[FinishedRun], column: str) -> dict[str, str]:
    """Return id -> value of a column of the score table or of the data set; earlier runs take precedence.

    Raises:
        SettingsError: no run has such a column.
        DataError: a data set cannot be read any more.
    """
    found: dict[str, str] = {}
    known: dict[str, None] = {}
    there = False
    for run in runs:
        table = run.examples
        known |= dict.fromkeys(name for name in table.column_names if name not in FIXED)
        if column in table.column_names and column not in FIXED:
            there = True
            values = zip(table.column("id").to_pylist(), table.column(column).to_pylist(), strict=True)
            found = {id_: label_of(value) for id_, value in values} | found
            continue
        known |= dict.fromkeys(run.source.columns)
        wanted = set(table.column("id").to_pylist()) - found.keys()
        if not wanted:
            continue
        for item in run.source.dataset:
            if isinstance(item, Example) and item.id in wanted:
                there = there or column in item.columns
                found[item.id] = label_of(item.columns.get(column))
        run.source.input_check.check()
    if not there:
        raise SettingsError(f"no record has a column `{column}`", hint=did_you_mean(column, known))
    return found


def label_of(value: Any) -> str:
    """Return a value as a category."""
    return NO_VALUE if value is None or value == "" else str(value)[:TEXT]


def with_text(one: Differing, example: Example | None) -> Differing:
    """Return a differing example with the beginning of its texts."""
    if example is None:
        return one
    last = example.prompt[-1].content if example.prompt else ""
    return replace(one, text=beginning(last), response=beginning(example.response.content))


def beginning(text: str) -> str:
    """Return the beginning of a text on one line."""
    words = " ".join(text[: 4 * TEXT].split())
    return words if len(words) <= TEXT else f"{words[: TEXT - 1]}…"
