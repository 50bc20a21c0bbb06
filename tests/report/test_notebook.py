"""Results as HTML, and the progress of a run from Python."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tithe
from tests.e2e.command import records
from tithe.report.notebook import NotebookReporter, choose_reporter, histogram, html, in_notebook
from tithe.report.reporter import Reporter
from tithe.report.terminal import TerminalReporter

HOSTILE = "<script>alert(1)</script>\x1b[31m & \"quoted\" 'q'"


class Tags(HTMLParser):
    """The names of all tags, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_text_is_escaped() -> None:
    page = Tags(html(HOSTILE, [("head", HOSTILE), ("x", HOSTILE)], [HOSTILE], histogram(HOSTILE, np.arange(5.0))))
    assert "script" not in page.tags and page.text.count("<script>alert(1)</script>") == 5
    assert "\x1b" not in page.text


def bars(svg: str, colour: str) -> list[float]:
    found = []
    for part in svg.split("<rect ")[1:]:
        if f'fill="{colour}"' in part:
            found.append(float(part.split('height="')[1].split('"')[0]))
    return found


def test_a_histogram_counts_every_finite_value_and_what_is_kept() -> None:
    values = np.array([0.0] * 10 + [1.0] * 5 + [np.nan, np.inf])
    kept = values == 1.0
    svg = histogram("ifd", values, kept)
    assert bars(svg, "#b8b8b8") == [56.0, 28.0] and bars(svg, "#4477aa") == [28.0]
    assert histogram("ifd", np.array([np.nan, 1.0])) == "" == histogram("ifd", np.array([]))
    assert bars(histogram("same", np.full(4, 2.0)), "#b8b8b8") == [56.0]


def test_results_show_themselves(model_dir: Path) -> None:
    chosen = tithe.select(records(20), scorer="length", model=str(model_dir), keep=5, progress=False)
    page = Tags(chosen._repr_html_())
    assert "kept 5 of 20 by top" in page.text and "15below the budget" in page.text.replace("\n", "")
    assert {"svg", "table"} <= set(page.tags)
    scored = Tags(chosen.scored._repr_html_())
    assert "length" in scored.text and "median" in scored.text and "svg" in scored.tags
    planned = tithe.plan(records(20), scorer="ifd", model=str(model_dir), progress=False)
    assert "forward passes, given" in Tags(planned._repr_html_()).text


def test_progress_goes_to_stderr_unless_it_is_silenced(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*records(20), {"instruction": "x", "output": 5}, *records(20)]
    tithe.score(data, scorer="length", model=str(model_dir), progress=False)
    assert capsys.readouterr() == ("", "")
    assert isinstance(choose_reporter(True), TerminalReporter) and type(choose_reporter(False)) is Reporter


class FakeDisplay:
    """IPython's `display`, as far as it is used: what each handle has shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
        self.shown: list[str] = []
        kernel = type(shell, (), {})()
        ipython = SimpleNamespace(get_ipython=lambda: kernel)
        handle = SimpleNamespace(update=self.shown.append)

        def display(line: str, display_id: bool) -> Any:
            self.shown.append(line)
            return handle

        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))


def test_a_notebook_shows_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeDisplay(monkeypatch, "ZMQInteractiveShell")
    assert in_notebook()
    reporter = choose_reporter(True)
    assert isinstance(reporter, NotebookReporter)
    monkeypatch.setattr("tithe.report.notebook.OFTEN", 0.0)
    reporter.say("note: <b>text</b>")
    reporter.phase("scoring <b>")
    reporter.expect(10)
    reporter.progress(4, 100)
    reporter.progress(6, 200)
    reporter.done()
    first, second, last = fake.shown
    assert "4 of 10 records" in first and 'value="4.0" max="10"' in first and "<b>" not in first
    assert "10 of 10 records" in second and "scoring &lt;b&gt;: 10 records, 0 s" in last
    assert capsys.readouterr() == ("note: <b>text</b>\n", "")


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDisplay(monkeypatch, "TerminalInteractiveShell")
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
