"""`tithe tune` and `tithe warmup` as typed: what is said where, and exit codes."""

from __future__ import annotations

import sys

import pytest

from tithe import cli


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of a command line."""
    monkeypatch.setattr(sys, "argv", ["tithe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tune"], 2, "no data set is given"),
        (["tune", "a.jsonl"], 2, "no place for the trained model is given"),
        (["tune", "a.jsonl", "--dataset", "b.jsonl", "-o", "x"], 2, "two data sets: `a.jsonl` and `--dataset b.jsonl`"),
        (["tune", "starter", "-o", "x"], 1, "no model given"),
        (["tune", "starter", "-m", "pocket", "-r", "alpaga", "-o", "x"], 1, "no recipe `alpaga`"),
        (["tune", "starter", "-m", "pocket", "--learning-rate", "-1", "-o", "x"], 1, "`learning_rate` of the recipe"),
        (["tune", "starter", "-m", "nowhere/at/all", "-o", "x"], 1, "nowhere/at/all"),
        (["warmup", "starter", "-m", "pocket", "--records", "7", "-o", "x"], 1, "7 records cannot be taken"),
        (["warmup", "starter", "-m", "pocket", "--choose", "kmeens", "-o", "x"], 1, "`choose` cannot be `kmeens`"),
    ],
)
def test_what_cannot_be_gets_one_sentence(monkeypatch, capsys, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    got, out, err = run(monkeypatch, capsys, *arguments)
    assert (got, out) == (code, "") and message in err.splitlines()[0] and err.startswith("error: ")
    assert len(err.splitlines()) <= 2 and not list(tmp_path.glob("x/*"))


def test_of_many_processes_the_first_names_the_fault(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    code, out, err = run(monkeypatch, capsys, "tune", "starter", "-m", "pocket", "-r", "alpaga", "-o", "x")
    assert (code, out, err) == (1, "", "")
