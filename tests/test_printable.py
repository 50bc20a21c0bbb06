"""Foreign text cannot control the terminal."""

import json
import sys
import unicodedata

import pytest
from rich.table import Table

from tithe.cli.entry import fail
from tithe.errors import DataError
from tithe.printable import MOST, QUOTED, counted, hint_line, json_text, one_line, printable, shorten
from tithe.report.terminal import TerminalReporter, console, pairs, show_list

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj.exe\u2066\u200b\r\b\x7f\ud800"


def harmless(text: str) -> bool:
    """Nothing but line ends among control characters, marks of direction, separators and half characters."""
    bad = {"Cc", "Cs", "Zl", "Zp"}
    turning = "\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
    return not any((unicodedata.category(c) in bad and c != "\n") or c in turning for c in text)


def test_every_character_that_acts_is_shown_by_its_escape():
    assert printable("a\x1b[2J\x9b\u202e\ud800\U000e0041\nb\tc") == ("a\\x1b[2J\\x9b\\u202e\\ud800\\U000e0041\\nb\\tc")
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert harmless(printable(everything)) and harmless(printable(everything, keep="\n"))
    whole = "naïve 日本語 \u3000 नमस्ते 👩\u200d💻 می\u200cخواهم `x` [bold]"
    assert printable(whole) == whole and printable(printable(HOSTILE)) == printable(HOSTILE)


def test_a_message_is_one_short_line_wherever_its_values_come_from():
    error = DataError(f"no file `{HOSTILE}\n{'x' * 70_000}`, {'y' * 70_000} it ends", hint="give\nanother " + HOSTILE)
    said = str(error)
    assert harmless(said) and "\n" not in said and len(said) <= MOST and said.endswith("it ends")
    assert error.hint is not None and harmless(error.hint) and error.hint.startswith("give another")
    assert len(hint_line("h" * 70_000)) <= MOST


def test_a_value_is_shortened_in_the_middle_and_the_rest_stays():
    path = "/folder" * 60 + "/the-file.jsonl"
    assert one_line(f"cannot read `{path}`: {'why ' * 60}`no`") == (f"cannot read `{shorten(path)}`: {'why ' * 60}`no`")
    assert len(shorten(path)) == QUOTED and shorten(path).endswith("/the-file.jsonl")
    assert shorten("x" * QUOTED) == "x" * QUOTED


def test_a_password_in_an_address_is_in_no_message():
    assert one_line("proxy http://me:hush@host:1/x failed at `https://hush@host`") == (
        "proxy http://***@host:1/x failed at `https://***@host`"
    )
    assert "hush" not in hint_line("use http://me:hush@host")


def test_json_is_the_same_data_without_what_a_terminal_acts_on():
    value = {HOSTILE: [HOSTILE, "\U000e0041 ä 日本"], "n": 1}
    text = json_text(value)
    assert json.loads(text) == value and harmless(text) and "ä 日本" in text


def test_the_screen_shows_foreign_text_as_it_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")
    out = console()
    name = f"[bold red]{HOSTILE}[/] :smile: [/nothing]"
    grid = Table("[link=http://x]head", box=None)
    grid.add_row(name)
    TerminalReporter().say(f"written: {name}")
    out.print(grid, soft_wrap=True)
    out.print(pairs([(name, 3)]), soft_wrap=True)
    said = capsys.readouterr().err
    assert harmless(said) and said.count("[bold red]") == 3 and said.count(":smile:") == 3
    assert "[link=http://x]head" in said and "[/nothing]" in said


def test_a_forged_line_stays_in_its_line(capsys: pytest.CaptureFixture[str]):
    TerminalReporter().say("written: a\nerror: forged")
    assert capsys.readouterr().err == "written: a\\nerror: forged\n"


def test_a_very_long_reason_is_no_page(capsys: pytest.CaptureFixture[str]):
    TerminalReporter().say("x" * 70_000)
    assert len(capsys.readouterr().err) <= MOST + 1


def test_listings_and_errors_are_safe(capsys: pytest.CaptureFixture[str]):
    show_list([{"name": HOSTILE, "about": HOSTILE}], False)
    show_list([{"name": HOSTILE, "about": HOSTILE}], True)
    with pytest.raises(SystemExit):
        fail(f"unexpected ValueError: {HOSTILE} {'x' * 70_000}", HOSTILE)
    said = capsys.readouterr()
    assert harmless(said.out) and harmless(said.err) and len(said.err) < 2 * MOST


def test_counts_as_a_person_writes_them():
    things = [(1, "pass"), (0, "pass"), (1200, "pass"), (1, "response"), (2, "response")]
    assert [counted(n, thing) for n, thing in things] == [
        "1 pass",
        "0 passes",
        "1,200 passes",
        "1 response",
        "2 responses",
    ]
