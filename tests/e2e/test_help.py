"""Help and listings: there, quick, and readable on a small terminal."""

from __future__ import annotations

import pytest

from tests.e2e.command import Command, child

COMMANDS = ["select", "score", "plan", "scorers", "selectors", "templates", "doctor", "export", "check"]
COMMANDS += ["tiers build", "tiers import", "tiers look"]
HEAVY = ["torch", "transformers", "datasets", "pandas", "sklearn", "pyarrow", "numpy", "jinja2"]
LIGHT = """
import sys
from tithe.cli import main
sys.argv = ["tithe", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("heavy:", [name for name in HEAVY if name in sys.modules])
"""


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_of_every_command(tithe: Command, command: str | None) -> None:
    done = tithe.ok(*(command or "").split(), "--help")
    assert done.out.startswith("Usage: tithe") and done.err == ""
    assert max(map(len, done.out.splitlines())) <= 110


def test_nothing_given_shows_the_help(tithe: Command) -> None:
    done = tithe()
    assert done.code == 2 and done.out == "" and done.err.startswith("Usage: tithe")


def test_version(tithe: Command) -> None:
    from tithe import __version__

    assert tithe.ok("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["select", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    out, err = child(f"HEAVY = {HEAVY}\n{LIGHT}", *arguments, fresh=True).communicate(timeout=60)
    assert out.splitlines()[-1] == "heavy: []", err


def test_import_is_light_too() -> None:
    out, err = child(
        f"import sys, tithe; print([name for name in {HEAVY} if name in sys.modules])", fresh=True
    ).communicate()
    assert out == "[]\n", err


@pytest.mark.parametrize("listing", ["scorers", "selectors", "templates", "doctor"])
def test_listings_fit_a_hundred_columns(tithe: Command, listing: str) -> None:
    done = tithe.ok(listing)
    assert done.err == "" and max(map(len, done.out.splitlines())) <= 100
    rows = tithe.ok(listing, "--json").json
    for row in rows:
        assert next(iter(row.values())) in done.out
    names = [row.get("name") for row in rows]
    expected = {"scorers": "ifd", "selectors": "stratified", "templates": "chat", "doctor": None}[listing]
    assert expected in names


def test_underscores_are_dashes(tithe: Command) -> None:
    failed = tithe.fails("plan", "nowhere.jsonl", "--model_name_or_path", "x", "--max_length=0")
    assert "max_length" in failed.err
