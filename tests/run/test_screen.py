"""What a person sees while it runs."""

from __future__ import annotations

import pytest

from tithe.run import screen
from tithe.run.screen import Screen, show_list, size


def test_lines_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    talk = Screen()
    talk.expect(1000)
    for second in range(1, 31):
        now[0] = 100.0 + second
        talk.progress(10, 1000 * second)
    talk.done()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "100 of 1,000 records, 1,111 tokens/s, about 90 s left".replace("about 90 s", "about 2 min"),
        "200 of 1,000 records, 1,053 tokens/s, about 80 s left",
        "300 of 1,000 records, 1,034 tokens/s, about 70 s left",
    ]


def told(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, float, int]], total: int, talk: Screen) -> None:
    """Let a screen hear (second, examples, tokens so far)."""
    talk.expect(total)
    for second, examples, tokens in steps:
        monkeypatch.setattr(screen.time, "monotonic", lambda now=100.0 + second: now)
        talk.progress(examples, tokens)


def test_phases_have_names_and_speeds_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder that is loaded for a minute says nothing of how fast it is, and a fast phase nothing of a slow one."""
    monkeypatch.setattr(screen.time, "monotonic", lambda: 100.0)
    talk = Screen()
    talk.phase("embedding prompts")
    told(monkeypatch, [(0, 0, 0), (60, 16, 0), (61, 16, 0), (70.5, 96, 0)], 1000, talk)
    talk.done()
    monkeypatch.setattr(screen.time, "monotonic", lambda: 200.0)
    talk.phase("scoring")
    told(monkeypatch, [(100, 0, 0), (101, 10, 500), (111, 100, 1500), (122, 100, 2500)], 1000, talk)
    talk.done()
    assert capsys.readouterr().err.splitlines() == [
        "embedding prompts: 16 of 1,000 records",
        "embedding prompts: 128 of 1,000 records, about 82 s left",
        "scoring: 110 of 1,000 records, 150 tokens/s, about 89 s left",
        "scoring: 210 of 1,000 records, 119 tokens/s, about 83 s left",
    ]


def test_no_estimate_before_a_fair_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(screen.time, "monotonic", lambda: 100.0)
    talk = Screen()
    told(monkeypatch, [(1, 1, 10), (31, 5, 20), (61, 30, 30)], 1000, talk)
    lines = capsys.readouterr().err.splitlines()
    assert ["left" in line for line in lines] == [False, True]


def test_a_long_phase_of_unknown_size_is_told_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    talk = Screen()
    for lasts in (2.0, 45.0):
        talk.phase("miwv: searching")
        now[0] += lasts
        talk.done()
    assert capsys.readouterr().err == "miwv: searching: 45 s\n"


def test_a_short_run_says_nothing_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Screen()
    talk.expect(None)
    talk.progress(10, 1000)
    talk.done()
    assert capsys.readouterr().err == ""


def test_a_listing_wraps_what_it_is_about(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show_list([{"name": "a", "unit": "x", "about": "word " * 20}, {"name": "bcd", "unit": "", "about": ""}], False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name  unit" and lines[1] == "a     x" and lines[-1] == "bcd"
    assert all(line.startswith("    word") and len(line) <= 60 for line in lines[2:-1]) and len(lines) == 5


@pytest.mark.parametrize(("n", "text"), [(5, "5 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3 TB")])
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text
