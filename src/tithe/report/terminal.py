"""The terminal: a console that prints foreign text as what it is, a progress bar, and tables on stderr."""

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
FAIR_SECONDS, FAIR_SHARE = 5.0, 0.02  # of a phase: less of it done says nothing of how long the rest takes
BELOW = ("about", "settings")  # of a listing's row, what is too long for a column
QUANTILES = ("min", "25 %", "median", "75 %", "max")


class SafeConsole(Console):
    """Prints foreign text as what it is: `[bold]` and `:smile:` stay as written, an escape sequence does nothing.

    All that a run says passes here: sentences and cells of tables as strings, before their width is measured, and
    whatever else is rendered on its way out.
    """

    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(shorten(printable(text), MOST), **(style | {"markup": False, "emoji": False}))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable(part.text, keep="\n"))


def console() -> Console:
    return SafeConsole(stderr=True, highlight=False)


class TokenRate(ProgressColumn):
    """Tokens read by the model per second, since the first."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate")
        return Text(f"{rate:,.0f} tokens/s" if rate else "")


class TimeLeft(ProgressColumn):
    """What is left of the phase, once enough of it is done."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"about {time_text(left)} left")


def time_text(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class TerminalReporter(Reporter):
    """Progress with tokens per second and time left; a plain line now and then where stderr is no terminal."""

    def __init__(self) -> None:
        self.console = console()
        self.bar: Progress | None = None
        self.total: int | None = None
        self.about = False
        self.name, self.examples = "", 0.0
        self.began = self.spoke = time.monotonic()
        self.since: tuple[float, float] | None = None  # when the work itself began, and what was done by then
        self.reading, self.tokens, self.tokens_before = 0.0, 0, 0

    @property
    def trouble(self) -> str | None:  # type: ignore[override]
        stream = sys.stderr
        return stream.trouble if isinstance(stream, SteadyStream) else None

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        self.name = name
        self.expect(None)

    def expect(self, examples: int | None, *, about: bool = False) -> None:
        self.about = about
        self.total, self.examples, self.since, self.reading = examples, 0.0, None, 0.0
        self.tokens_before = self.tokens  # a rate is that of its own phase
        self.began = self.spoke = time.monotonic()
        if self.bar is not None:  # the phase was named before its size was known
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
        # What came before the first words of progress was loading, which says nothing of the rest; so do, where tokens
        # are read, records whose answers were there already.
        first = not self.reading and tokens not in (0, self.tokens_before)
        if (examples and self.since is None) or first:
            self.since = (now, self.examples)
        if first:  # what was read by now was read before this clock began
            self.reading, self.tokens_before = now, tokens
        self.tokens = tokens
        self.tokens_before = self.tokens_before if self.tokens_before <= tokens else 0  # counted anew
        lasted = now - self.reading
        rate = (tokens - self.tokens_before) / lasted if self.reading and lasted > 0.5 else None
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=round(self.examples), rate=rate, left=self.left(now))
        elif now - self.spoke >= EVERY:
            self.spoke = now
            self.say(self.line(now, rate))

    def left(self, now: float) -> float | None:
        """Return the seconds that the phase will still take; None before enough of it is done to tell."""
        if self.total is None or self.since is None or self.examples >= self.total:
            return None
        began, before = self.since
        done = self.examples - before
        if now - began < FAIR_SECONDS or done < FAIR_SHARE * self.total:
            return None
        return (now - began) * (self.total - self.examples) / done

    def line(self, now: float, rate: float | None) -> str:
        """Return progress in words."""
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
    """Print what records hold that is not read as it may be meant, and how many examples are there twice."""
    for sentence in note_sentences(counts):
        say(out, sentence)
    if counts["duplicates"]:
        say(
            out,
            f"exact duplicates: {counts['duplicates']:,} of {counts['examples']:,} examples repeat an earlier one; "
            "`tithe select --drop-duplicates` keeps the first of them",
        )


def show_list(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A listing: lines on stdout, with what is about a row and its settings under it; or JSON."""
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
    grid = Grid(box=None, show_header=False, pad_edge=False)
    grid.add_column()
    grid.add_column(justify="right")
    for name, value in rows:
        grid.add_row(name, f"{value:,}")
    return grid


def five(values: np.ndarray[Any, Any]) -> list[str]:
    there = values[~np.isnan(values)]
    return [f"{q:.4g}" for q in np.quantile(there, [0, 0.25, 0.5, 0.75, 1])] if len(there) else ["-"] * 5


def size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def say(out: Console, *parts: str) -> None:
    out.print("".join(parts), markup=False, soft_wrap=True)
