"""Print the result of a command to stderr: counts that add up, quantiles, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from tithe.data.counts import remark_sentences
from tithe.printable import counted
from tithe.report.terminal import QUANTILES, console, five, pairs, say, show_notes, size
from tithe.run.choose import shown_columns
from tithe.run.plan_example import example_lines
from tithe.run.results import PipelineResult, PlanResult, ScoreResult, SelectResult, duration, share

NOTABLE = 0.5  # rank correlation with length that is worth a note
MUCH_LONGER = 2.0  # ratio of median lengths, kept to pool, that is worth a note


def show_plan(result: PlanResult) -> None:
    """Print what a run would read, and its cost."""
    out, counts = console(), result.record["counts"]
    rows = [("records", counts["records"]), ("examples", counts["examples"])]
    rows += [(f"bad row: {reason}", n) for reason, n in counts["bad_rows"].items()]
    rows += [(f"problem: {reason}", n) for reason, n in counts["problems"].items()]
    rows += [("asks", counts["passes_asked"])]
    rows += [(f"forward passes, {kind}", n) for kind, n in counts["passes"].items()]
    rows += [("tokens to read", counts["forward_tokens"])]
    rows += [("  in common beginnings, read once where passes are packed", -result.record["shared_tokens"])]
    rows += [("response tokens scored", counts["scored_tokens"])]
    rows += [("longest pass, tokens", counts["longest_pass"]), ("prompts cut", counts["truncated_prompts"])]
    rows += [("responses cut", counts["truncated_responses"])]
    if counts["truncated_shots"]:
        rows += [("examples whose shots are cut", counts["truncated_shots"])]
    out.print(pairs(rows))
    for sentence in remark_sentences(counts):
        say(out, sentence)
    show_notes(out, counts)
    if result.record["estimated"]:
        say(out, "estimated: the run finds the worked examples to show; here they are drawn at random")
    if "cost" in result.record:
        cost, model = result.record["cost"], result.record["model"]
        about = "" if model["parameters_exact"] else "about "
        weights = ", ".join(f"{size(n)} in {dtype}" for dtype, n in cost["weight_bytes"].items())
        say(
            out, f"model: {about}{model['parameters']:,} parameters, {weights}; work: {cost['forward_flops']:.3g} FLOPs"
        )
    say(out, f"template: {result.template}, max length {result.record['template']['max_length']:,} tokens")
    for line in example_lines(result.example):
        say(out, line)
    if (time := time_line(result.record["time"])) is not None:
        say(out, time)


def time_line(time: Mapping[str, Any]) -> str | None:
    """Return about how long the run takes here, or why that is not known; None if nobody asked."""
    if not time:
        return None
    if "not_measured" in time:
        return f"time: not measured: {time['not_measured']}"
    low, high = map(duration, time["seconds_range"])
    besides = ", ".join(time["without_encoders"])
    without = f"; without the vectors of prompts ({besides}), which are computed first" if besides else ""
    return (
        f"time: about {duration(time['seconds'])} here ({low} to {high}), at {time['tokens_per_second']:,.0f} tokens/s "
        f"on {time['device']} in {time['dtype']}, from {counted(time['sample_records'], 'record')}{without}"
    )


def show_scores(result: ScoreResult, output: Path | None, folder: Path) -> None:
    """Print counts, quantiles, problems and where the files are."""
    out = console()
    grid = Grid("scorer", *QUANTILES, "without score", box=None, pad_edge=False)
    table = result.score_table
    for name in table.scorers:
        grid.add_row(name, *five(table.floats(name)), f"{table.without_score(name):,}")
    out.print(grid)
    show_counts(out, result.record)
    say(out, f"written: {output or folder / 'scores.parquet'}; run folder {folder}")


def show_selection(result: SelectResult, output: Path | None, folder: Path) -> None:
    """Print counts that add up, quantiles of kept and pool, and where the files are."""
    out, chosen = console(), result.record["selection"]
    show_counts(out, result.record)
    what = f"kept by {chosen['selector']} on {chosen['by']}, budget {chosen['budget']}"
    if chosen["kept_records"] != chosen["kept"]:
        what += f", in {chosen['kept_records']:,} records"
    rows = [(what, chosen["kept"])]
    rows += [(f"dropped: {reason}", n) for reason, n in chosen["dropped"].items()]
    rows += [("= examples", chosen["examples"])]
    out.print(pairs(rows))
    show_kept_duplicates(out, chosen["duplicates"])
    grid = Grid("", *QUANTILES, box=None, pad_edge=False)
    kept = set(result.selection.kept)
    mask = np.array([id_ in kept for id_ in result.scores.ids], dtype=bool)
    for name, values in shown_columns(result.scores, result.scored).items():
        words = name.replace("_", " ")
        grid.add_row(f"{words}, pool", *five(values))
        grid.add_row(f"{words}, kept", *five(values[mask]))
    out.print(grid)
    if line := length_line(chosen):
        say(out, line)
    if result.note:
        say(out, f"note: {result.note}")
    say(out, f"kept: {output}; " if output else "", f"run folder {folder} (scores.parquet, dropped.jsonl, run.json)")


def length_line(selection: Mapping[str, Any]) -> str | None:
    """Return a note on how score and response length are related, or None if they hardly are."""
    by, rho, spread = selection["by"], selection["rank_correlation_with_length"], selection["quantiles"]
    pool, kept = (spread["response_tokens"][side] for side in ("pool", "kept"))
    times = kept[2] / pool[2] if pool and kept and pool[2] else 1.0
    notable = rho is not None and abs(rho) >= NOTABLE
    if by == "length" or not (notable or times >= MUCH_LONGER or times <= 1 / MUCH_LONGER):
        return None
    ratio = f"{times:.2g} times" if times >= 1 else f"{100 * times:.2g} % of"
    parts = [f"kept responses have {ratio} the pool's median length"]
    if rho is not None:
        how = "rises" if rho > 0 else "falls"
        parts.append(f"{by} {how} with response length (rank correlation {rho:.2f})")
    # A mean of ranks names its parts: what is residualised already, and what ranks by length on purpose, stays so.
    meant = "_residual" in by or "rank(length)" in by
    way = "" if meant or not notable else "; `--residualise length` ranks by what length does not explain"
    return f"note: {', and '.join(parts)}{way}"


def show_counts(out: Console, record: Mapping[str, Any]) -> None:
    """Print bad rows, problems, truncation and speed, if there are any."""
    counts, work = record["counts"], record["work"]
    say(out, f"{counted(counts['records'], 'record')}, {counted(counts['examples'], 'example')}")
    for reason, n in counts["bad_rows"].items():
        say(out, f"bad rows set aside, {n:,}: {reason}")
    show_notes(out, counts)
    for reason, n in counts["problems"].items():
        say(out, f"examples without a score, {n:,}: {reason}")
    for sentence in remark_sentences(counts):
        say(out, sentence)
    if counts["truncated_prompts"] or counts["truncated_responses"]:
        limit = record["template"]["max_length"]
        say(
            out,
            f"cut at max length {limit}: {counted(counts['truncated_responses'], 'response')} "
            f"({counted(counts['response_tokens_cut'], 'token')}), {counted(counts['truncated_prompts'], 'prompt')}",
        )
    if counts["truncated_shots"]:
        say(
            out,
            f"worked examples cut to fit: {counted(counts['shot_tokens_cut'], 'token')} before "
            f"{counted(counts['truncated_shots'], 'example')}",
        )
    if work["passes_out_of_memory"]:
        failed = counted(work["passes_out_of_memory"], "pass")
        say(out, f"out of memory even in a batch of one, tried again on the next run: {failed}")
    if work["passes_computed"] or work["passes_reused"]:
        say(
            out,
            f"{counted(work['passes_computed'], 'pass')} computed, {work['passes_reused']:,} found in the run folder, "
            f"{counted(work['tokens_read'], 'token')} in {work['seconds']:.1f} s",
        )


def show_kept_duplicates(out: Console, duplicates: Mapping[str, int]) -> None:
    """Print how many kept examples are duplicates, if the pool has any."""
    if duplicates["pool"]:
        way = "; `--drop-duplicates` keeps the first of equals" if duplicates["kept"] else ""
        say(out, f"exact duplicates among the kept: {duplicates['kept']:,}{way}")


def show_selected(result: SelectResult, output: Path | None, folder: Path) -> None:
    """Print the result of a selection, made in stages or not."""
    if isinstance(result, PipelineResult):
        show_pipeline(result, output, folder)
    else:
        show_selection(result, output, folder)


def show_pipeline(result: PipelineResult, output: Path | None, folder: Path) -> None:
    """Print what each stage read and kept, counts that add up over the whole input, and where the files are."""
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
    """Return the quantiles of every score, over all examples that have it and over those kept at the end."""
    grid = Grid("", *QUANTILES, box=None, pad_edge=False)
    kept = set(result.kept)
    mask = np.array([id_ in kept for id_ in result.scores.ids], dtype=bool)
    columns = {name: result.scored.scores(name).values for name in result.scored.score_table.scorers}
    for name, values in {**columns, "response tokens": result.scores.columns["response_tokens"]}.items():
        grid.add_row(f"{name}, pool", *five(values))
        grid.add_row(f"{name}, kept", *five(values[mask]))
    return grid
