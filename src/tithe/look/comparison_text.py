"""Print a comparison of runs: one line for each pair, then each pair's tops, categories, and what differs most."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tithe.look.compared_pair import SHOWN_TOP, ComparedPair
from tithe.look.record_text import WIDTH, say
from tithe.look.shown_record import finite
from tithe.look.top_overlap import RankCorrelation, TopOverlap
from tithe.printable import counted, printable
from tithe.report.terminal import SafeConsole

MOST_PAIRS = 3  # printed in full
TEXT = 60  # characters of a name or a setting in a table
SHORTEST = 20  # characters of a record's text


def print_comparison(result: ComparedRuns, out: Console) -> None:
    """Print a comparison."""
    if len(result.pairs) > 1:
        print_pairs(out, result.pairs)
        out.print()
    for pair in result.pairs[:MOST_PAIRS]:
        print_pair(out, pair, result.within)
        out.print()
    if left := result.pairs[MOST_PAIRS:]:
        say(out, f"{counted(len(left), 'more pair')} in full: on the page (`-o compare.html`) or with `--json`")
        out.print()
    if result.differs:
        say(out, "settings that differ:")
        grid = table("", *result.folders)
        for name, values in result.differs.items():
            grid.add_row(name, *(clip(value, TEXT) for value in values))
        out.print(grid)
        out.print()
    for note in result.notes:
        say(out, note)


def plain_comparison(result: ComparedRuns, width: int = WIDTH) -> str:
    """Return what `print_comparison` prints, without colours."""
    out = SafeConsole(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_comparison(result, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().rstrip("\n")


def table(*names: str, numbers: Sequence[int] = ()) -> Grid:
    """Return a table without lines; the columns in `numbers` are aligned to the right."""
    grid = Grid(box=None, pad_edge=False)
    for i, name in enumerate(names):
        grid.add_column(Text(printable(name)), justify="right" if i in numbers else "left", no_wrap=i not in numbers)
    return grid


def print_pairs(out: Console, pairs: Sequence[ComparedPair]) -> None:
    """Print one line for each pair: rank correlation and shared tops."""
    percents = [f"{one.percent} %" for one in pairs[0].tops]
    say(out, "rank correlation, and how much of the tops is shared:")
    grid = table("", "examples", "Spearman", *percents, numbers=range(1, 3 + len(percents)))
    for column in grid.columns[1:]:
        column.no_wrap = True
    for pair in pairs:
        cells = [f"{round(100 * one.share)} %" for one in pair.tops]
        grid.add_row(label(title(pair)), f"{pair.counts.both:,}", number(pair.correlation.value), *cells)
    out.print(grid)


def title(pair: ComparedPair) -> str:
    """Return the names of a pair, and a scorer that both have only once."""
    (a, _, one), (b, _, other) = (name.partition(": ") for name in pair.names)
    return f"{a} and {b}: {one}" if one and one == other else " and ".join(pair.names)


def print_pair(out: Console, pair: ComparedPair, within: str | None) -> None:
    """Print everything about a pair."""
    a, b = pair.names
    say(out, f"{a} and {b}")
    say(out, f"  {counts_of(pair)}")
    say(out, f"  Spearman rank correlation {correlation_words(pair.correlation)}")
    grid = table("  top", "records", "in both", "overlap", "95 %", "by chance", "95 %", numbers=range(1, 7))
    for top in pair.tops:
        grid.add_row(f"  {top.percent} %", f"{top.size:,}", f"{top.shared:,}", *top_cells(top))
    out.print(grid)
    for sentence in remarks(pair):
        say(out, f"  {sentence}")
    if pair.categories:
        print_categories(out, pair, within or "")
    if pair.differ:
        print_differing(out, pair, within)


def counts_of(pair: ComparedPair) -> str:
    """Return the sentence on what is compared, and what is not."""
    c, (a, b) = pair.counts, pair.names
    parts = [f"{counted(c.both, 'example')} with both scores"]
    for name, n in zip((a, b), c.only, strict=True):
        if n:
            parts.append(f"{n:,} only in {name}")
    for name, n in zip((a, b), c.without, strict=True):
        if n:
            parts.append(f"{n:,} without a score of {name}")
    return "; ".join(parts)


def correlation_words(one: RankCorrelation) -> str:
    if one.value is None:
        return "-: one of the two does not vary"
    interval = "" if one.low is None or one.high is None else f" (95 %: {one.low:.2f} to {one.high:.2f})"
    return f"{one.value:.2f}{interval}"


def top_cells(top: TopOverlap) -> tuple[str, str, str, str]:
    """Return overlap, its interval, chance, and its range, in percent."""
    return (
        percent(top.share),
        f"{100 * top.low:.0f} to {100 * top.high:.0f}",
        percent(top.chance),
        f"{100 * top.chance_low:.0f} to {100 * top.chance_high:.0f}",
    )


def remarks(pair: ComparedPair) -> list[str]:
    """Return sentences on ties, and on what the runs kept."""
    said = []
    tied = [f"{one.percent} %" for one in pair.tops if one.tied]
    if tied:
        said.append(f"equal scores lie at the edge of the top {', '.join(tied)}: the first records are in it")
    if (kept := pair.selected) is not None:
        a, b = kept.kept
        said.append(f"kept {a:,} and {b:,}: {kept.shared:,} by both, {kept.chance:.1f} by chance")
    return said


def print_categories(out: Console, pair: ComparedPair, within: str) -> None:
    """Print the agreement within each category."""
    a, b = pair.names
    head = f"top {SHOWN_TOP} %: {a}", b, "both", "ranks lower by"
    grid = table(f"  {within}", "records", "Spearman", *head, numbers=range(1, 7))
    for one in pair.categories:
        tops = [f"{n:,}" for n in one.tops]
        shift = shift_words(one.shift)
        grid.add_row(
            Text(f"  {printable(clip(one.value, 40))}"), f"{one.examples:,}", number(one.correlation), *tops, shift
        )
    out.print()
    out.print(grid)
    say(out, f"  ranks lower by: how much lower {b} ranks them than {a}, on average, in percent of all ranks")
    if pair.categories_left_out:
        say(out, f"  {pair.categories_left_out:,} smaller categories are left out")


def print_differing(out: Console, pair: ComparedPair, within: str | None) -> None:
    """Print the records that the two rank most differently."""
    rows = []
    for one in pair.differ:
        ranks = [f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}" for rank in one.ranks]
        scores = [f"{score:.4g}" for score in one.scores]
        category = [printable(clip(one.category or "", 20))] if within else []
        rows.append([f"  {ranks[0]}", ranks[1], *scores, f"{one.row:,}", *category])
    names = ["  rank", "rank", "score", "score", "record", *([clip(printable(within), 20)] if within else [])]
    taken = sum(2 + max(map(len, column)) for column in zip(names, *rows, strict=True))
    left = max(SHORTEST, out.width - taken)
    grid = table(*names, "prompt", numbers=range(5))
    for one, row in zip(pair.differ, rows, strict=True):
        grid.add_row(*map(Text, row), Text(clip(printable(one.text or one.id), left)))
    out.print()
    say(
        out,
        f"  ranked most differently, of {pair.counts.both:,}; rank and score by {pair.names[0]}, then {pair.names[1]}:",
    )
    out.print(grid)


def shift_words(shift: float) -> str:
    return f"{round(shift):+d} %" if round(shift) else "0 %"


def label(name: str) -> Text:
    return Text(printable(clip(name, TEXT)))


def clip(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.1 else f"{100 * share:.2g} %"


@dataclass(frozen=True)
class ComparedRuns:
    """How far rankings agree, pair by pair.

    Args:
        pairs: the pairs.
        folders: the run folders.
        differs: settings in which the runs differ: name -> one value for each run.
        within: the column by which categories are listed.
        notes: what is unusual.
    """

    pairs: Sequence[ComparedPair]
    folders: Sequence[str]
    differs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    within: str | None = None
    notes: Sequence[str] = ()

    @property
    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        made: dict[str, Any] = finite(asdict(self))
        for one, own in zip(made["pairs"], self.pairs, strict=True):
            for top, mine in zip(one["tops"], own.tops, strict=True):
                top["share"] = mine.share
        return made

    def __repr__(self) -> str:
        parts = [pair_words(one) for one in self.pairs[:2]]
        more = [f"{len(self.pairs) - 2:,} more pairs"] if len(self.pairs) > 2 else []
        return f"<ComparedRuns: {'; '.join([*parts, *more])}>"

    def __str__(self) -> str:
        return plain_comparison(self)


def pair_words(pair: ComparedPair) -> str:
    """Return a pair in a few words: its correlation and the overlap of the top 5 %."""
    value = pair.correlation.value
    top = next((one for one in pair.tops if one.percent == 5), None)
    overlap = "" if top is None else f", top 5 % {round(100 * top.share)} % shared"
    rank = "no rank correlation" if value is None else f"Spearman {value:.2f}"
    return f"{pair.names[0][:40]} and {pair.names[1][:40]}: {rank}{overlap}"
