"""The command line's own part: arguments, exit codes, and what becomes of an exception."""

from __future__ import annotations

import sys

import pytest

from tithe import cli
from tithe.errors import DataError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--max_length=5"], ["--max-length=5"]),
        (["--max_length", "a_b"], ["--max-length", "a_b"]),
        (["--model=a_b", "my_data.jsonl"], ["--model=a_b", "my_data.jsonl"]),
        (["-o", "a_b"], ["-o", "a_b"]),
        (["--", "--a_b"], ["--", "--a_b"]),
    ],
)
def test_underscores_in_names_are_dashes(given: list[str], expected: list[str]) -> None:
    assert cli.dashed(given) == expected


@pytest.mark.parametrize(
    ("raised", "code", "lines"),
    [
        (DataError("one\ntwo  three", hint="so\nwhat"), 1, ["error: one two three", "hint: so what"]),
        (cli.Usage("no"), 2, ["error: no"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (ZeroDivisionError("x"), 1, ["error: unexpected ZeroDivisionError: x"]),
    ],
)
def test_what_becomes_of_an_exception(
    raised: BaseException,
    code: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken() -> list[object]:
        raise raised

    monkeypatch.setattr("tithe.cli.listings.scorer_rows", broken)
    monkeypatch.setattr(sys, "argv", ["tithe", "scorers"])
    monkeypatch.delenv("TITHE_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == code and captured.out == ""
    assert captured.err.splitlines()[: len(lines)] == lines


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[object]:
        raise ZeroDivisionError

    monkeypatch.setattr("tithe.cli.listings.scorer_rows", broken)
    monkeypatch.setattr(sys, "argv", ["tithe", "scorers"])
    monkeypatch.setenv("TITHE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()
