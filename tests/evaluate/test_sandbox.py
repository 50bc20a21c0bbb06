"""Programs that misbehave: none passes, none reaches anything, all end."""

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tithe.evaluate import sandbox
from tithe.evaluate.sandbox import ENVIRONMENT, Limits, Outcome, SandboxError, judged, run_program

QUICK = Limits(cpu_seconds=1, wall_seconds=15)
GOOD = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2\nassert f(2) == 3"


def outcome(solution, tests=TESTS, limits=QUICK):
    return run_program(solution, tests, limits)


def test_what_is_right_passes_and_what_is_wrong_does_not():
    good = outcome(GOOD)
    assert good.passed and good.reason == ""
    assert set(good.confined) == {"network", "processes", "files"}
    bad = outcome("def f(x):\n    return x\n")
    assert not bad.passed and bad.reason.startswith("AssertionError")


@pytest.mark.parametrize(
    ("solution", "why"),
    [
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "left early with exit code 0"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(x)\n    return x + 1", "SyntaxError"),
        ("import ctypes\nctypes.string_at(0)", "ended by signal 11"),
        (GOOD + "'''", "SyntaxError"),
        (GOOD + "@staticmethod", "SyntaxError"),
        (GOOD + "AssertionError = ValueError\nassert False", "AssertionError"),
        ("import os\ndef f(x):\n    os._exit(0)", "left early with exit code 0"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x)", ""),
        (GOOD + "input()", "EOFError"),
        ("def f(x):\n    return eval('(' * 10**5)", ""),
    ],
)
def test_ending_early_is_no_pass(solution, why):
    got = outcome(solution)
    assert not got.passed and why in got.reason, got


def test_a_mark_that_is_guessed_is_none():
    guess = (
        "import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'{\"mark\": \"%s\"}\\n' % (b'0' * 32))\n"
    )
    got = outcome(guess + "    except OSError:\n        pass\nos._exit(0)")
    assert not got.passed


@pytest.mark.slow
@pytest.mark.parametrize(
    "solution",
    [
        "while True:\n    pass",
        "print('x' * 10**6)\nwhile True:\n    print('x' * 1000)",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        "import threading\n[threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start() for _ in range(20)]",
    ],
)
def test_endless_programs_end(solution):
    began = time.monotonic()
    got = outcome(solution, "while True:\n    pass")
    assert not got.passed and time.monotonic() - began < 14, got


@pytest.mark.slow
def test_sleeping_does_not_help():
    got = outcome("import time\ntime.sleep(1000)", limits=Limits(cpu_seconds=1, wall_seconds=2))
    assert not got.passed and got.reason == "out of time after 2 s"


def test_memory_is_limited():
    got = outcome("data = [bytearray(1 << 24) for _ in range(10**4)]", limits=Limits(10, 15, 1 << 28))
    assert not got.passed and "MemoryError" in got.reason


def test_files_are_small_and_gone_afterwards(tmp_path):
    before = set(Path(tempfile.gettempdir()).glob("tithe-cell-*"))
    got = outcome("open('big', 'wb').write(bytes(1 << 25))", limits=Limits(file_bytes=1 << 20))
    assert not got.passed and ("File too large" in got.reason or "signal 25" in got.reason), got
    stuck = "import os\nos.mkdir('a')\nopen('a/b', 'w').write('x')\nos.chmod('a', 0)\n"
    assert outcome(stuck + GOOD).passed
    assert set(Path(tempfile.gettempdir()).glob("tithe-cell-*")) <= before


def attempt(code):
    """A solution that passes only where the attempt is refused."""
    body = "\n".join(f"    {line}" for line in code.splitlines())
    return f"{GOOD}try:\n{body}\nexcept OSError as error:\n    pass\nelse:\n    raise RuntimeError('it went')\n"


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=2)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=2)",
        "import os\nos.kill(os.getppid(), 9)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_neither_network_nor_processes_are_reached(code):
    got = outcome(attempt(code))
    assert got.passed, got


def test_a_fork_bomb_does_not_go_off():
    got = outcome("import os\nwhile True:\n    os.fork()")
    assert not got.passed and ("Error" in got.reason or "out of time" in got.reason), got
    assert "seccomp" not in got.confined["processes"] or "PermissionError" in got.reason


def test_the_parent_survives_and_its_environment_is_unread(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    names = {*ENVIRONMENT, "LC_CTYPE"}  # Python itself sets the last one
    got = outcome(f"import os\nassert set(os.environ) <= {names!r}, sorted(os.environ)\n{GOOD}")
    assert got.passed, got
    peek = f"{GOOD}try:\n    text = open('/proc/{os.getpid()}/environ').read()\nexcept OSError:\n    text = ''\n"
    got = outcome(f"{peek}assert 'hunter2' not in text\n")
    assert got.passed or got.confined["files"] == "none"


def test_limits_cannot_be_raised():
    for name in ("RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_CPU"):
        code = f"import resource\nresource.setrlimit(resource.{name}, (-1, -1))"
        got = outcome(attempt(code).replace("except OSError", "except (OSError, ValueError)"))
        assert got.passed or "seccomp" not in got.confined["processes"], (name, got)


def test_other_files_are_out_of_reach(tmp_path):
    (tmp_path / "secret").write_text("hunter2")
    there = [attempt(f"open({str(tmp_path / 'secret')!r}).read()"), attempt(f"open({str(tmp_path / 'n')!r}, 'w')")]
    for code in (*there, attempt("import os\nos.listdir('/')"), attempt("import os\nos.listdir('/proc')")):
        got = outcome(code)
        assert got.passed or got.confined["files"] == "none", got
    assert outcome("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'\n" + GOOD).passed
    assert not (tmp_path / "n").exists()


def test_ordinary_libraries_work():
    got = outcome(
        "import asyncio, collections, datetime, decimal, hashlib, itertools, math, random, re, threading\n"
        "import numpy as np\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
        "async def g():\n    return 1\nassert asyncio.run(g()) == 1\nassert np.zeros(3).sum() == 0\n" + GOOD,
        limits=Limits(),
    )
    assert got.passed, got


def test_a_main_guard_is_not_entered():
    assert outcome(GOOD + "if __name__ == '__main__':\n    raise RuntimeError\n").passed


def test_a_process_that_did_not_confine_itself_is_no_result():
    with pytest.raises(SandboxError, match="could not confine itself"):
        judged([], "n", 1, True, QUICK)
    assert judged([{"confined": {}}, {"mark": "n"}], "n", 0, True, QUICK) == Outcome(True)
    assert not judged([{"confined": {}}, {"mark": "m"}], "n", 0, True, QUICK).passed


def test_the_interpreter_is_this_one():
    assert outcome(f"import sys\nassert sys.executable == {sys.executable!r}\n{GOOD}").passed


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """As on a system without namespaces, Landlock and seccomp."""
    text = sandbox.CELL.read_text()
    for name in ("leave_network", "close_files", "refuse_calls"):
        assert f"def {name}(libc: ctypes.CDLL) -> bool:" in text
        text = text.replace(f"{name}(libc)", "False")
    (tmp_path / "cell.py").write_text(text)
    monkeypatch.setattr(sandbox, "CELL", tmp_path / "cell.py")


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=2)",
        "import os\nos.kill(os.getppid(), 0)",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.fork()",
    ],
)
def test_without_the_systems_help_python_refuses_and_it_is_said(bare, code):
    got = outcome(attempt(code))
    assert got.passed, got
    assert got.confined == {"network": "audit hook", "processes": "rlimit and audit hook", "files": "none"}
    assert not outcome("import os\nos._exit(0)").passed
