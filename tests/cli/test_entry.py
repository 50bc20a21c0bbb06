"""The entry point: arguments, exit codes, messages for exceptions, and a standard output that takes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tithe import cli
from tithe.cli.app import Usage, app
from tithe.cli.entry import demand_values
from tithe.errors import DataError, SettingsError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["select", ""], "on the command line"),
        (["select", "d", "-o", ""], "of `-o`"),
        (["select", "d", "--model", " "], "of `--model`"),
        (["select", "d", "--run-dir="], "of `--run-dir`"),
    ],
)
def test_an_empty_value_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=f"a value {said} is empty"):
        demand_values(arguments)


def test_a_header_may_be_empty() -> None:
    demand_values(["select", "d", "--alone-header", "", "--alone-header=", "-k", "5"])


@pytest.mark.parametrize("twice", [["--seed", "1", "--seed=2"], ["-k", "5", "--keep", "5"], ["--eos", "--no-eos"]])
def test_an_option_is_taken_once(twice: list[str]) -> None:
    option = max(twice[:3:2], key=len).partition("=")[0]
    with pytest.raises(Usage, match=f"`{option}` is given 2 times"):
        app(["select", "starter", *twice], standalone_mode=False)


def test_what_may_be_repeated_is_repeated() -> None:
    given = ["--drop", "ifd > 1", "--drop", "ifd < 0", "-s", "ifd", "-s", "length", "--overwrite", "--overwrite"]
    with pytest.raises(Usage, match="no data set is given"):
        app(["select", *given], standalone_mode=False)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [["scorers", "--json"], ["--help"]])
def test_a_full_standard_output_is_one_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        call = [sys.executable, "-m", "tithe.cli", *arguments]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: cannot write to standard output: No space")
    assert len(done.stderr.splitlines()) == 2


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
