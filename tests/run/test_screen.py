"""What the terminal shows while a run works."""

from __future__ import annotations

from typing import Any

import pytest

from tithe.report import terminal
from tithe.report.terminal import TerminalReporter, show_list, size
from tithe.run.summaries import length_line


def test_lines_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    reporter = TerminalReporter()
    reporter.expect(1000)
    for second in range(1, 31):
        now[0] = 100.0 + second
        reporter.progress(10, 1000 * second)
    reporter.done()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "100 of 1,000 records, 1,000 tokens/s, about 90 s left".replace("about 90 s", "about 2 min"),
        "200 of 1,000 records, 1,000 tokens/s, about 80 s left",
        "300 of 1,000 records, 1,000 tokens/s, about 70 s left",
    ]


def told(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, float, int]], total: int, reporter: TerminalReporter
) -> None:
    """Send a terminal reporter events (second, examples, tokens so far)."""
    reporter.expect(total)
    for second, examples, tokens in steps:
        monkeypatch.setattr(terminal.time, "monotonic", lambda now=100.0 + second: now)
        reporter.progress(examples, tokens)


def test_phases_have_names_and_speeds_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate excludes the minute for loading an encoder, and one phase tells nothing about the next."""
    monkeypatch.setattr(terminal.time, "monotonic", lambda: 100.0)
    reporter = TerminalReporter()
    reporter.phase("embedding prompts")
    told(monkeypatch, [(0, 0, 0), (60, 16, 0), (61, 16, 0), (70.5, 96, 0)], 1000, reporter)
    reporter.done()
    monkeypatch.setattr(terminal.time, "monotonic", lambda: 200.0)
    reporter.phase("scoring")
    told(monkeypatch, [(100, 0, 0), (101, 10, 500), (111, 100, 1500), (121, 100, 2500)], 1000, reporter)
    reporter.done()
    assert capsys.readouterr().err.splitlines() == [
        "embedding prompts: 16 of 1,000 records",
        "embedding prompts: 128 of 1,000 records, about 82 s left",
        "scoring: 110 of 1,000 records, 100 tokens/s, about 89 s left",
        "scoring: 210 of 1,000 records, 100 tokens/s, about 79 s left",
    ]


def test_no_estimate_before_a_fair_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal.time, "monotonic", lambda: 100.0)
    reporter = TerminalReporter()
    told(monkeypatch, [(1, 1, 10), (31, 5, 20), (61, 30, 30)], 1000, reporter)
    lines = capsys.readouterr().err.splitlines()
    assert ["left" in line for line in lines] == [False, True]


def test_a_long_phase_of_unknown_size_is_told_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    reporter = TerminalReporter()
    for lasts in (2.0, 45.0):
        reporter.phase("miwv: searching")
        now[0] += lasts
        reporter.done()
    assert capsys.readouterr().err == "miwv: searching: 45 s\n"


def test_a_short_run_says_nothing_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter()
    reporter.expect(None)
    reporter.progress(10, 1000)
    reporter.done()
    assert capsys.readouterr().err == ""


def test_a_listing_wraps_what_it_is_about(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show_list([{"name": "a", "unit": "x", "about": "word " * 20}, {"name": "bcd", "unit": "", "about": ""}], False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name  unit" and lines[1] == "a     x" and lines[-1] == "bcd"
    assert all(line.startswith("    word") and len(line) <= 60 for line in lines[2:-1]) and len(lines) == 5


def selection(by: str, rho: float | None, pool: int, kept: int) -> dict[str, Any]:
    lengths = {"pool": [1, 2, pool, 3, 4], "kept": [1, 2, kept, 3, 4]}
    return {"by": by, "rank_correlation_with_length": rho, "quantiles": {"response_tokens": lengths}}


@pytest.mark.parametrize(
    ("chosen", "words", "way_out"),
    [
        (selection("miwv", 0.73, 100, 450), ["4.5 times", "rises", "0.73"], True),
        (selection("ifd", -0.6, 100, 90), ["90 % of", "falls", "-0.60"], True),
        (selection("rank(ifd)+rank(miwv)", 0.6, 100, 300), ["3 times", "rises", "0.60"], True),
        (selection("random", None, 100, 10), ["10 % of"], False),
        (selection("random", -0.19, 100, 300), ["3 times", "-0.19"], False),  # chance: nothing to take length out of
        (selection("ifd_residual", 0.1, 100, 300), ["3 times"], False),
        (selection("rank(ifd_residual)+rank(miwv_residual)", 0.1, 100, 300), ["3 times"], False),
        (selection("rank(ifd)+rank(length)", 0.8, 100, 300), ["3 times", "0.80"], False),  # longer on purpose
    ],
)
def test_what_a_score_has_to_do_with_length(chosen: dict[str, Any], words: list[str], way_out: bool) -> None:
    line = length_line(chosen)
    assert line is not None and all(word in line for word in words)
    assert ("--residualise length" in line) == way_out


@pytest.mark.parametrize(
    "chosen", [selection("ifd", 0.3, 100, 120), selection("length", 1.0, 100, 400), selection("ifd", None, 0, 0)]
)
def test_a_score_that_has_little_to_do_with_length(chosen: dict[str, Any]) -> None:
    assert length_line(chosen) is None


@pytest.mark.parametrize(("n", "text"), [(5, "5 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3 TB")])
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text
