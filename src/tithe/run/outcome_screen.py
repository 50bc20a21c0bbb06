"""A pipeline's result, as a person sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table as Grid

from tithe.run.outcome import PipelineResult, share
from tithe.run.results import SelectResult
from tithe.run.screen import (
    QUANTILES,
    console,
    five,
    length_line,
    pairs,
    say,
    show_counts,
    show_kept_duplicates,
    show_selection,
)


def show_selected(result: SelectResult, output: Path | None, folder: Path) -> None:
    """A selection's result, made in stages or not."""
    if isinstance(result, PipelineResult):
        show_pipeline(result, output, folder)
    else:
        show_selection(result, output, folder)


def show_pipeline(result: PipelineResult, output: Path | None, folder: Path) -> None:
    """What each stage read and kept, counts that add up over the whole input, and where the files are."""
    out, chosen = console(), result.record["selection"]
    for done in result.stages:
        if done.column:
            say(out, f"{done.stage.label}:")
            show_counts(out, done.chosen.record)
    grid = Grid("", "in", "kept", "of the stage", "of all", box=None, pad_edge=False)
    for done in result.stages:
        came, kept = len(done.chosen.scores), len(done.chosen)
        grid.add_row(done.stage.label, f"{came:,}", f"{kept:,}", share(kept, came), share(kept, done.total))
    out.print(grid)
    what = "kept at the end"
    if chosen["kept_records"] != chosen["kept"]:
        what += f", in {chosen['kept_records']:,} records"
    rows = [(what, chosen["kept"]), *((f"dropped: {reason}", n) for reason, n in chosen["dropped"].items())]
    out.print(pairs([*rows, ("= examples", chosen["examples"])]))
    show_kept_duplicates(out, chosen["duplicates"])
    out.print(spreads(result))
    if line := length_line(chosen):
        say(out, line)
    if result.note:
        say(out, f"note: {result.note}")
    say(out, f"kept: {output}; " if output else "", f"run folder {folder} (scores.parquet, dropped.jsonl, run.json)")


def spreads(result: PipelineResult) -> Grid:
    """Quantiles of every score, of all that have it and of what is kept at the end."""
    grid = Grid("", *QUANTILES, box=None, pad_edge=False)
    kept = set(result.kept)
    mask = np.array([id_ in kept for id_ in result.scores.ids], dtype=bool)
    columns = {name: result.scored.scores(name).values for name in result.scored.grown.scorers}
    for name, values in {**columns, "response tokens": result.scores.columns["response_tokens"]}.items():
        grid.add_row(f"{name}, pool", *five(values))
        grid.add_row(f"{name}, kept", *five(values[mask]))
    return grid
