"""The way in and the ways out: empty values, and a standard output that takes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tithe.cli.app import Usage, app
from tithe.cli.entry import demand_values
from tithe.errors import SettingsError


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
