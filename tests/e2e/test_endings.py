"""However a run ends, it says so, keeps what it has, and `run.json` tells of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Command, child, records, write_jsonl
from tests.e2e.test_resume import HASTY, command, count_parts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")]

ALWAYS = {"settings", "versions", "dataset", "scorers", "template", "model", "counts", "work", "engine", "outcome"}
RUN = "import sys; sys.argv[0] = 'tithe'; from tithe.cli import main; main()"


def record(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "k.tithe" / "run.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "many.jsonl", records(240))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_as_ctrl_c_does(
    tithe: Command, many: Path, model_dir: Path, tmp_path: Path, name: str
) -> None:
    number = getattr(signal, name)
    process = child(HASTY, 0.3, *command(many, model_dir, tmp_path))
    run = tmp_path / "k.tithe"
    assert wait_for(lambda: count_parts(run) >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, ""), err
    told = record(tmp_path)
    stored = told["outcome"]["answers_stored"]
    assert told["outcome"] == {"status": "interrupted", "by": name, "answers_stored": stored} and stored
    assert told.keys() >= ALWAYS and told["engine"]["loaded"]
    assert 0 < stored <= told["work"]["passes_computed"]  # the signal may come before the last ones are written
    assert err.splitlines()[-3:-1] == [
        f"{stored:,} answers are stored in `{run}`: run the same command again to go on",
        f"error: interrupted by {name}",
    ]
    assert not (tmp_path / "k.jsonl").exists() and not list(run.rglob("*.part"))
    again = tithe.ok(*command(many, model_dir, tmp_path)).json
    assert again["work"]["passes_reused"] == stored and again["outcome"] == {"status": "finished"}
    assert record(tmp_path) == again  # and nothing of the run before

    found = tithe.ok(*command(many, model_dir, tmp_path), "--overwrite").json
    assert found["work"]["passes_computed"] == 0 and found.keys() >= ALWAYS
    assert found["engine"] == {"loaded": False, "devices": ["cpu"], "dtype": again["engine"]["dtype"]}


def test_a_second_signal_ends_it_at_once(many: Path, model_dir: Path, tmp_path: Path) -> None:
    process = child(HASTY, 60, *command(many, model_dir, tmp_path))
    assert wait_for(lambda: (tmp_path / "k.tithe" / ".lock").exists(), process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    if process.poll() is None:  # it waits for what is under way
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    # Where the interpreter is shutting down already, it has put Ctrl-C's own handler back.
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGINT)


def test_an_ignored_signal_stays_ignored(small: Path, model_dir: Path, tmp_path: Path) -> None:
    """As under `nohup`, and for Ctrl-C in a script's `&`."""
    ignoring = f"import signal\nfor one in (signal.SIGHUP, signal.SIGINT): signal.signal(one, signal.SIG_IGN)\n{HASTY}"
    process = child(ignoring, 0.05, *command(small, model_dir, tmp_path))
    assert wait_for(lambda: count_parts(tmp_path / "k.tithe"), process)
    for one in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(one)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and json.loads(out)["outcome"] == {"status": "finished"}, err


@pytest.mark.parametrize("how", [pytest.param("full", marks=pytest.mark.thorough), "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(small: Path, model_dir: Path, tmp_path: Path, how: str) -> None:
    full = Path("/dev/full")
    if how == "full" and not full.exists():
        pytest.skip("no device that is always full")
    line = 'exec "$@" 2>/dev/full' if how == "full" else 'exec "$@" 2>&-'
    arguments = [sys.executable, "-c", RUN, *map(str, command(small, model_dir, tmp_path))]
    done = subprocess.run(["sh", "-c", line, "sh", *arguments], stdout=subprocess.PIPE, check=False, timeout=300)
    assert done.returncode == 0
    log = {"full": os.strerror(28), "closed": "closed"}[how]
    assert json.loads(done.stdout)["outcome"] == {"status": "finished", "log": log}
    assert (tmp_path / "k.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [(["scorers"], True), (["--version"], True), (["export", "starter", "--to", "messages", "-o"], False)],
)
def test_a_closed_stdout_is_said_where_something_is_printed(tmp_path: Path, arguments: list[str], lost: bool) -> None:
    """And no file that is opened gets its number, and with it what libraries print."""
    output = [] if lost else [str(tmp_path / "k.jsonl")]
    line = [sys.executable, "-c", RUN, *arguments, *output]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *line], stderr=subprocess.PIPE, check=False, timeout=300, text=True
    )
    assert (done.returncode, "cannot write to standard output: it is closed" in done.stderr) == (int(lost), lost)
    assert lost or (tmp_path / "k.jsonl").read_text().count("\n") == 600


def test_a_run_that_fails_is_told_with_the_last_one_that_did_not(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tithe.ok(*command(small, model_dir, tmp_path)).json
    assert "nothing of" in tithe.fails(*command(small, model_dir, tmp_path), "--overwrite", "--drop", "ifd > 0").err
    told = record(tmp_path)
    assert told["outcome"]["status"] == "failed" and "nothing of" in told["outcome"]["error"]
    assert "unexpected" not in told["outcome"] and told["selection"]["kept"] == 0
    assert told["last_finished"] == first

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(sys.modules["tithe.run.score"], "begin_phase", broken)
    monkeypatch.delenv("TITHE_DEBUG", raising=False)
    assert tithe(*command(small, model_dir, tmp_path), "--overwrite").code == 1
    told = record(tmp_path)
    assert told["outcome"]["unexpected"] == "ZeroDivisionError" and told["outcome"]["error"] == "a fault"
    assert told.keys() >= ALWAYS and told["last_finished"] == first


def test_handlers_are_those_of_before(tithe: Command) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before, stream = [signal.getsignal(one) for one in numbers], sys.stderr
    tithe.ok("scorers")
    assert [signal.getsignal(one) for one in numbers] == before and sys.stderr is stream
