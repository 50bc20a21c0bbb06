"""Show a run in a notebook: its progress as one line that changes, and its results as small tables and histograms."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from tithe.printable import printable
from tithe.report.reporter import Reporter
from tithe.report.terminal import SafeConsole, TerminalReporter, five

OFTEN = 0.5  # seconds between two changes of the line
BINS, WIDTH, HEIGHT = 48, 320, 56
BLUE, GREY = "#4477aa", "#b8b8b8"  # told apart also by their order: what was kept is drawn over the whole


def choose_reporter(progress: bool) -> Reporter:
    """Return the reporter for a call from Python: in a notebook its own, elsewhere the terminal's, or a silent one."""
    if not progress:
        return Reporter()
    return NotebookReporter() if in_notebook() else TerminalReporter()


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, and not IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


def ipython_display() -> Any:
    """Return the module that shows HTML in a notebook; it is there wherever `in_notebook` says so."""
    return importlib.import_module("IPython.display")


class NotebookReporter(TerminalReporter):
    """Show notes as text, and progress as one line that changes in place; needs no widgets."""

    def __init__(self) -> None:
        super().__init__()
        # On stdout: notebooks show stderr in red, as if something had gone wrong.
        self.console = SafeConsole(highlight=False, force_terminal=False, force_jupyter=False, width=120)
        self.handle: Any = None

    def show(self, now: float, rate: float | None) -> None:
        if now - self.spoke < OFTEN:
            return
        self.spoke = now
        shown = ipython_display()
        done = f'value="{self.examples}" max="{self.total}"' if self.total else ""
        line = shown.HTML(f"<div>{escape(printable(self.line(now, rate)))} <progress {done}></progress></div>")
        if self.handle is None:
            self.handle = shown.display(line, display_id=True)
        else:
            self.handle.update(line)

    def done(self) -> None:
        if self.handle is not None:
            took = time.monotonic() - self.began
            text = f"{self.name or 'records'}: {self.examples:,.0f} records, {took:.0f} s"
            self.handle.update(ipython_display().HTML(f"<div>{escape(text)}</div>"))
            self.handle = None
        super().done()


def html(title: str, rows: Sequence[Sequence[object]], notes: Sequence[str] = (), drawings: str = "") -> str:
    """Return a result as HTML; all text is escaped.

    Args:
        title: one line.
        rows: of a table; the first one is its head.
        notes: lines below.
        drawings: SVG, which is not escaped: only our own.
    """
    head, *body = [[escape(printable(str(cell))) for cell in row] for row in rows] or [[]]
    table = Markup("").join(
        [Markup("<tr>")]
        + [Markup('<th style="text-align:left">{}</th>').format(cell) for cell in head]
        + [Markup("</tr>")]
        + [
            Markup("<tr>{}</tr>").format(
                Markup("").join(Markup('<td style="text-align:left">{}</td>').format(cell) for cell in row)
            )
            for row in body
        ]
    )
    lines = Markup("").join(Markup("<div>{}</div>").format(printable(note)) for note in notes)
    return str(
        Markup("<div><div><b>{}</b></div><table>{}</table>{}{}</div>").format(
            printable(title), table, Markup(drawings), lines
        )
    )


def quantile_rows(columns: Mapping[str, npt.NDArray[np.float64]], without: Mapping[str, int]) -> list[list[str]]:
    """Return the rows of a table of quantiles, one for each column of scores."""
    head = ["scorer", "min", "25 %", "median", "75 %", "max", "without a score"]
    return [head, *([name, *five(values), f"{without[name]:,}"] for name, values in columns.items())]


def histogram(name: str, values: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_] | None = None) -> str:
    """Return a histogram as SVG, with what was kept in front; empty if there is nothing to draw.

    The lowest and highest hundredth share the outer bins, so that one outlier does not leave all others in one bin.
    """
    there = np.isfinite(values)
    if there.sum() < 2:
        return ""
    low, high = np.quantile(values[there], [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, values[there], side="right") - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    front = counts if kept is None else np.bincount(bins[kept[there]], minlength=BINS)
    scale, wide = HEIGHT / counts.max(), WIDTH / BINS
    label = f"{name}: {low:.4g} to {high:.4g}" + ("" if kept is None else "; kept in blue")
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{HEIGHT - n * scale:.1f}" width="{wide - 0.7:.1f}" height="{n * scale:.1f}" '
        f'fill="{colour}"/>'
        for heights, colour in ((counts, GREY), (front, BLUE))
        for i, n in enumerate(heights)
        if n
    )
    return str(
        Markup(
            '<figure style="margin:.4em 0"><svg width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
            "<figcaption>{}</figcaption></figure>"
        ).format(WIDTH, HEIGHT, printable(label), Markup(bars), printable(label))
    )
