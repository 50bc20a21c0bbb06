"""Print to the terminal: a console that is safe for any text, a progress bar, listings and tables."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

from tithe.data.counts import note_sentences
from tithe.printable import MOST, SteadyStream, json_text, printable, shorten
from tithe.report.reporter import Reporter

EVERY = 10.0  # seconds between two lines of progress
FAIR_SECONDS, FAIR_SHARE = 5.0, 0.02  # of a phase that must be done before the time left is estimated
BELOW = ("about", "settings")  # fields of a listing's row that are too long for a column
QUANTILES = ("min", "25 %", "median", "75 %", "max")


class SafeConsole(Console):
    """Print any text literally: `[bold]` and `:smile:` are not markup, and escape sequences have no effect.

    Everything a run prints passes here. `render_str` gets sentences and table cells before their width is measured,
    `render` whatever else is rendered, on its way out.
    """

    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(shorten(printable(text), MOST), **(style | {"markup": False, "emoji": False}))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable(part.text, keep="\n"))


def console() -> Console:
    """Return a console on stderr."""
    return SafeConsole(stderr=True, highlight=False)


class TokenRate(ProgressColumn):
    """Show the tokens per second that the model reads, since the first one."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate")
        return Text(f"{rate:,.0f} tokens/s" if rate else "")


class TimeLeft(ProgressColumn):
    """Show the time left of the phase, once enough of it is done to tell."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"about {time_text(left)} left")


def time_text(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class TerminalReporter(Reporter):
    """Show progress with tokens per second and time left; as a line every ten seconds if stderr is not a terminal."""

    def __init__(self) -> None:
        self.console = console()
        self.bar: Progress | None = None
        self.total: int | None = None
        self.about = False
        self.name, self.examples = "", 0.0
        self.began = self.spoke = time.monotonic()
        self.since: tuple[float, float] | None = None  # time of the first progress, and examples done by then
        self.reading, self.tokens, self.tokens_before = 0.0, 0, 0

    @property
    def trouble(self) -> str | None:  # type: ignore[override]
        stream = sys.stderr
        return stream.trouble if isinstance(stream, SteadyStream) else None

    def say(self, sentence: str) -> None:
        say(self.console, sentence)

    def phase(self, name: str) -> None:
        self.name = name
        self.expect(None)

    def expect(self, examples: int | None, *, about: bool = False) -> None:
        self.about = about
        self.total, self.examples, self.since, self.reading = examples, 0.0, None, 0.0
        self.tokens_before = self.tokens  # the rate counts only this phase's tokens
        self.began = self.spoke = time.monotonic()
        if self.bar is not None:  # `phase` opened a bar before the size was known
            self.bar.stop()
            self.bar = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TokenRate(), TimeLeft())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(escape(self.name or "records"), total=examples)

    def progress(self, examples: float, tokens: int) -> None:
        now = time.monotonic()
        self.examples += examples
        # The time left is estimated from the first progress on: what came before was loading. If tokens are read, it is
        # estimated from the first tokens on: records before them had stored answers, and took no time.
        first = not self.reading and tokens not in (0, self.tokens_before)
        if (examples and self.since is None) or first:
            self.since = (now, self.examples)
        if first:  # tokens read until now were read before this clock started
            self.reading, self.tokens_before = now, tokens
        self.tokens = tokens
        self.tokens_before = self.tokens_before if self.tokens_before <= tokens else 0  # the count started again
        lasted = now - self.reading
        rate = (tokens - self.tokens_before) / lasted if self.reading and lasted > 0.5 else None
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=round(self.examples), rate=rate, left=self.left(now))
        else:
            self.show(now, rate)

    def show(self, now: float, rate: float | None) -> None:
        """Show the progress where there is no bar: a line every ten seconds."""
        if now - self.spoke >= EVERY:
            self.spoke = now
            self.say(self.line(now, rate))

    def left(self, now: float) -> float | None:
        """Return the seconds left of the phase; None before enough of it is done to tell."""
        if self.total is None or self.since is None or self.examples >= self.total:
            return None
        began, before = self.since
        done = self.examples - before
        if now - began < FAIR_SECONDS or done < FAIR_SHARE * self.total:
            return None
        return (now - began) * (self.total - self.examples) / done

    def line(self, now: float, rate: float | None) -> str:
        """Return the progress as a sentence."""
        of = f" of {'about ' * self.about}{self.total:,}" if self.total else ""
        parts = [f"{self.examples:,.0f}{of} records"]
        if rate:
            parts.append(f"{rate:,.0f} tokens/s")
        left = self.left(now)
        if left is not None:
            parts.append(f"about {time_text(left)} left")
        return f"{self.name}: " * bool(self.name) + ", ".join(parts)

    def done(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        lasted = time.monotonic() - self.began
        if self.name and self.total is None and not self.examples and lasted >= EVERY:
            self.say(f"{self.name}: {time_text(lasted)}")
        self.name = ""


def show_notes(out: Console, counts: Mapping[str, Any]) -> None:
    """Print notes on records that may be read otherwise than meant, and the number of duplicates."""
    for sentence in note_sentences(counts):
        say(out, sentence)
    if counts["duplicates"]:
        say(
            out,
            f"exact duplicates: {counts['duplicates']:,} of {counts['examples']:,} examples repeat an earlier one; "
            "`tithe select --drop-duplicates` keeps the first of them",
        )


def show_list(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a listing to stdout: one line per row, with its description and settings below it; or JSON."""
    if as_json:
        print(json_text([*rows]))
        return
    names = [name for name in rows[0] if name not in BELOW]
    cells = [names, *([printable(str(row[name])) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    columns = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    for line, row in zip(lines, [{}, *rows], strict=True):
        print(line)
        texts = [("settings: " * (name == "settings") + row[name]) for name in BELOW if row.get(name)]
        for part in (part for text in texts for part in textwrap.wrap(text, columns - 4, break_long_words=False)):
            print("    " + printable(part))


def pairs(rows: Sequence[tuple[str, int]]) -> Grid:
    """Return a table of names and counts."""
    grid = Grid(box=None, show_header=False, pad_edge=False)
    grid.add_column()
    grid.add_column(justify="right")
    for name, value in rows:
        grid.add_row(name, f"{value:,}")
    return grid


def five(values: np.ndarray[Any, Any]) -> list[str]:
    """Return the five `QUANTILES` of the values that are not NaN, as text."""
    there = values[~np.isnan(values)]
    return [f"{q:.4g}" for q in np.quantile(there, [0, 0.25, 0.5, 0.75, 1])] if len(there) else ["-"] * 5


def size(n: float) -> str:
    """Return a number of bytes as text, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def say(out: Console, *parts: str) -> None:
    """Print a sentence, given in parts, literally and without wrapping it."""
    out.print("".join(parts), markup=False, soft_wrap=True)
