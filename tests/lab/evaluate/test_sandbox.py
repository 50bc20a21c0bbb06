"""Programs that misbehave: none passes, none reaches anything, all end, and none ends another's grading."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import tithe
from tests.lab.evaluate import breaches
from tithe.errors import TitheError
from tithe.lab.evaluate import cell, confinement, sandbox
from tithe.lab.evaluate.confinement import ENVIRONMENT, NOBODY, Bubblewrap, Container
from tithe.lab.evaluate.programs import Grader
from tithe.lab.evaluate.sandbox import Limits, SandboxError, run_program, sandbox_row, try_out
from tithe.lab.evaluate.tasks import resolve

pytestmark = pytest.mark.usefixtures("sandbox")
QUICK = Limits(cpu_seconds=1, wall_seconds=15)
GOOD = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2\nassert f(2) == 3"


def outcome(solution, tests=TESTS, limits=QUICK, **more):
    return run_program(solution, tests, limits, **more)


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
        ("import os\nos._exit(0)", "exited early with code 0"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(x)\n    return x + 1", "SyntaxError"),
        ("import ctypes\nctypes.string_at(0)", "ended by signal 11"),
        (GOOD + "'''", "SyntaxError"),
        (GOOD + "@staticmethod", "SyntaxError"),
        (GOOD + "AssertionError = ValueError\nassert False", "AssertionError"),
        ("import os\ndef f(x):\n    os._exit(0)", "exited early with code 0"),
        ("import sys\ndef f(x):\n    sys.exit(0)", "SystemExit"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x)", ""),
        (GOOD + "input()", "EOFError"),
        ("def f(x):\n    return eval('(' * 10**5)", ""),
        ("", "NameError"),
        (GOOD + "\ud800", "UnicodeEncodeError"),
        (GOOD + "\0", ""),
        ("class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E", "E: "),
    ],
)
def test_ending_early_is_no_pass(solution, why):
    got = outcome(solution)
    assert not got.passed and why in got.reason, got


WRITE = "import os\ndef f(x):\n    for fd in range(64):\n        try:\n            os.write(fd, {what})\n"
WRITE += "        except OSError:\n            pass\n    os._exit(0)\n"


@pytest.mark.parametrize(
    "what",
    [
        "b'P' + bytes(4)",  # what the tests say when all have passed
        "b'P' + bytes(4) + b'a' + bytes(4)",
        "b'\\xff' * 100",
        "b'a' + b'\\xff' * 4",
        "b'a' + (60000).to_bytes(4, 'big') + b'[' * 60000",
        "b'a' + (5).to_bytes(4, 'big') + b'\\xff\\xfe\\x00{]'",
        "b'a' + (2).to_bytes(4, 'big') + b'{}'",
        "b'F' + (9).to_bytes(4, 'big') + b'\\x1b[2J\\xff\\xff\\xff\\xff\\xff'",
    ],
)
def test_no_message_of_a_program_is_a_verdict(what):
    got = outcome(WRITE.format(what=what))
    assert not got.passed and got.reason.isprintable(), got


def test_a_program_knows_neither_its_tests_nor_their_values():
    """It looks through all objects and the whole stack for what only the tests hold."""
    search = (
        "import gc, sys\ndef f(x):\n    texts = [repr(o)[:1000] for o in gc.get_objects() if isinstance(o, dict)]\n"
        "    frame, names = sys._getframe(), []\n    while frame:\n        names += map(repr, frame.f_locals.items())\n"
        "        frame = frame.f_back\n    return not any('se' 'cret-7' in text for text in texts + names)\n"
    )
    assert outcome(search, "wanted = 'se' 'cret-7'\nassert f(1)").passed
    listing = "import os\ndef f():\n    return os.listdir('.')\n"
    assert outcome(listing, "assert f() == []").passed


def test_values_that_equal_everything_equal_nothing():
    liar = (
        "class Liar(list):\n    def __eq__(self, other):\n        return True\n    __ne__ = None\n    __hash__ = None\n"
    )
    assert not outcome(f"{liar}def f(x):\n    return Liar()\n").passed
    liar = liar.replace("(list)", "")
    assert not outcome(f"{liar}def f(x):\n    return Liar()\n").passed


def test_the_tests_own_names_go_before_the_solutions():
    cheat = "def helper(x):\n    return 0\ndef len(x):\n    return 0\ndef f(x):\n    return 7\n"
    given = "def helper(x):\n    return abs(x)\n\ndef f(x):\n    '''Say it.'''\n"
    tests = "assert helper(f(1)) == 0"
    assert outcome(cheat, tests).passed
    assert not outcome(cheat, tests, given=given, entry_point="f").passed
    assert outcome(cheat, "assert f(1) == 7 and len([1]) == 1", given=given, entry_point="f").passed
    assert outcome(cheat, tests, given="def f(x):\n", entry_point="f").passed  # no program by itself


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(1 << 80), 1 << 20000, 1.5, float("inf"), -0.0, "ä\ud800\n", b"\xff", 1j, range(3), {1, 2}),
        *((1, (2,)), [[], [1]], {"a": {1: (2,)}}, {(1, 2): "x"}, frozenset({1}), bytearray(b"x"), Fraction(1, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_come_back_as_they_were(value):
    back = cell.unpack(json.loads(json.dumps(cell.pack(value))))
    assert type(back) is type(value) and ascii_of(back) == ascii_of(value)


def ascii_of(value):
    """Tell -0.0 from 0.0; whole numbers may be longer than Python likes to print."""
    return hex(value) if type(value) is int else repr(value)


def test_other_values_come_back_as_what_they_equal():
    def back(value):
        return cell.unpack(json.loads(json.dumps(cell.pack(value))))

    assert [*back(iter([1, 2]))] == [*back(map(abs, [-1, 2]))] == [1, 2]
    assert back({1: 2}.keys()) == {1} and [*back({1: 2}.values())] == [2] and back({1: 2}.items()) == {(1, 2)}
    assert back(np.int64(3)) == 3 and back(np.float32(0.5)) == 0.5 and back(np.bool_(True)) is True
    assert repr(back([object()])) == "[<object>]" and back(len) != len


def test_errors_of_a_solution_reach_its_tests():
    tests = (
        "try:\n    f(0)\nexcept ZeroDivisionError as error:\n    assert 'zero' in str(error)\nelse:\n    assert False"
    )
    assert outcome("def f(x):\n    return 1 / x\n", tests).passed
    assert outcome("def f(x):\n    return 1 / 0\n").reason == "ZeroDivisionError: division by zero"
    own = "class Own(Exception):\n    pass\ndef f(x):\n    raise Own('a: b')\n"
    assert outcome(own).reason == "Own: a: b"
    assert not outcome("def f(x):\n    exit()\n", "try:\n    f(0)\nexcept Exception:\n    pass").passed


@pytest.mark.slow
@pytest.mark.parametrize(
    "solution",
    [
        "while True:\n    pass",
        "print('x' * 10**6)\nwhile True:\n    print('x' * 1000)",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        "import threading\n[threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start() for _ in range(20)]",
        "import os\nwhile True:\n    for fd in range(64):\n        try:\n            os.write(fd, b'a' + bytes(4))\n"
        "        except OSError:\n            pass",
        "import os\nos.closerange(0, 64)\nwhile True:\n    pass",
    ],
)
def test_endless_programs_end(solution):
    began = time.monotonic()
    got = outcome(solution, "while True:\n    f(1)")
    assert not got.passed and time.monotonic() - began < 17, got


@pytest.mark.slow
def test_sleeping_does_not_help():
    got = outcome("import time\ntime.sleep(1000)", limits=Limits(cpu_seconds=1, wall_seconds=2))
    assert not got.passed and got.reason == "out of time after 2 s"


def test_memory_is_limited():
    got = outcome("data = [bytearray(1 << 24) for _ in range(10**4)]", limits=Limits(10, 15, 1 << 28))
    assert not got.passed and "MemoryError" in got.reason


def test_ordinary_libraries_work():
    got = outcome(
        "import asyncio, collections, dataclasses, datetime, decimal, hashlib, itertools, math, random, re\n"
        "import threading\n"
        "import numpy as np\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
        "@dataclasses.dataclass\nclass D:\n    x: 'int' = 1\n"
        "for name in ('mine', '/dev/null'):\n    open(name, 'w').write('x')\n"
        "async def g():\n    return 1\nassert asyncio.run(g()) == 1\nassert np.zeros(3).sum() == 0\n"
        "assert open('mine').read() == 'x'\n" + GOOD,
        limits=Limits(),
    )
    assert got.passed, got


def test_its_environment_and_names_are_its_own():
    names = {*ENVIRONMENT, "LC_CTYPE"}  # Python itself sets the last one
    tests = f"assert set(names()) <= {names!r}, names()\nassert main() == 'program'"
    got = outcome("import os\ndef names():\n    return list(os.environ)\ndef main():\n    return __name__\n", tests)
    assert got.passed, got
    assert outcome(GOOD + "if __name__ == '__main__':\n    raise RuntimeError\n").passed


# --- breaches, by every kind of user there is ---------------------------------------------------------------------


def run_breaches(command, folder):
    """What `breaches.py` prints, run by a command that takes a Python program."""
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, check=False)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def as_nobody(python, folder):
    """A command that runs `python` as an ordinary user on this machine; folders that hide it are made passable."""
    bwrap = sandbox.confinement().bwrap
    hidden = [one for one in Path(python).parents if one != Path("/") and not one.stat().st_mode & 0o005]
    passable = []
    if hidden:
        base = Path(sys.base_prefix).resolve()
        ways = sorted(one for one in base.parents if hidden[-1] in one.parents)
        passable = [
            "--perms",
            "0755",
            "--tmpfs",
            str(hidden[-1]),
            *(part for one in ways for part in ("--dir", str(one))),
        ]
        passable += ["--ro-bind", str(base), str(base)]
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    caps = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [bwrap, "--dev-bind", "/", "/", *passable, *caps, "--chdir", str(folder), "--", *become, python]


@pytest.fixture(scope="module")
def held():
    """User -> how each attempt ended."""
    if not isinstance(sandbox.confinement(), Bubblewrap):
        pytest.skip("bubblewrap is not what confines programs here")
    folder = Path(tempfile.mkdtemp(prefix="tithe-breaches-"))
    try:
        folder.chmod(0o755)
        package, script = folder / "tithe", folder / "breaches.py"
        shutil.copytree(
            Path(sandbox.__file__).parent, package / "lab" / "evaluate", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("__init__.py", "errors.py", "extras.py", "printable.py", "lab/__init__.py"):
            shutil.copy(Path(tithe.__file__).parent / name, package / name)
        shutil.copy(breaches.__file__, script)
        for one in (*folder.rglob("*"),):
            one.chmod(0o755 if one.is_dir() else 0o644)
        start = ["-B", "-c", "import sys; sys.path.insert(0, '.'); import breaches; breaches.main()"]
        found = {"this user": run_breaches([sys.executable, *start], folder)}
        if os.geteuid() == 0:
            python = str(Path(sys.executable).resolve())
            found["an ordinary user"] = run_breaches([*as_nobody(python, folder), *start], folder)
        yield found
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", breaches.ATTEMPTS)
def test_no_attempt_to_get_out_succeeds(held, name):
    assert {user: found[name] for user, found in held.items()} == dict.fromkeys(held, "")


def test_an_attempt_that_succeeds_would_be_seen():
    got = outcome(breaches.program("open('mine', 'w')"), "assert breach() is False")
    assert not got.passed and got.reason == "AssertionError: "


def test_root_is_nobody_in_the_kernels_eyes():
    """A process that is root outside could write the kernel's settings, and no limit of processes would hold it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    way = sandbox.confinement()
    started = way.start(["-I", "-c", "import time; print(1, flush=True); time.sleep(60)"], 1 << 20, 60, subprocess.PIPE)
    try:
        assert started.process.stdout.read(1) == b"1"
        inner = descendants(started.process.pid)
        owners = {pid: Path(f"/proc/{pid}").stat().st_uid for pid in inner}
        python = [pid for pid in inner if Path(f"/proc/{pid}/comm").read_text().startswith("python")]
        assert python and all(owners[pid] == NOBODY for pid in python), owners
        status = Path(f"/proc/{python[0]}/status").read_text()
        lines = dict(line.split(":\t", 1) for line in status.splitlines())
        assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert lines["NoNewPrivs"] == "1" and lines["Seccomp"] == "2" and lines["Uid"].split() == [str(NOBODY)] * 4
    finally:
        started.end()
        started.process.communicate()


def descendants(pid):
    """All processes that a process started, and those that they did."""
    parents = {}
    for one in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = one.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(text.split()[0]))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def test_nothing_is_left_of_a_killed_parent(tmp_path):
    folder = Path(tempfile.gettempdir())
    before = {one.name for one in folder.iterdir()}
    code = (
        "from tithe.lab.evaluate.sandbox import run_program\n"
        'run_program(\'import time\\nopen("x", "w").write("x")\\nprint(1)\\ntime.sleep(999)\', \'\')'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until = time.monotonic() + 60
    while len(inner := descendants(process.pid)) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(inner) >= 4
    process.send_signal(signal.SIGKILL)
    process.wait()
    while (left := [pid for pid in inner if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    new = {one.name for one in folder.iterdir()} - before
    assert not [name for name in new if "tithe" in name or "cell" in name]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- one program ends no other's grading --------------------------------------------------------------------------

DEEP = "    import os\n    for _ in range(3000):\n        os.mkdir('a')\n        os.chdir('a')\n    return x + 1"
BAD = [
    "    return eval('[' * 60000)",
    "    value = []\n    for _ in range(60000):\n        value = [value]\n    return value",
    "    import itertools\n    return itertools.count()",
    "    import os\n    os.closerange(0, 64)\n    return 2",
    "    import os\n    os.write(1, b'\\xff' * 10**6)\n    os.abort()",
    "    raise type(': passed\\x1b[2J\\n\\udc80', (Exception,), {})('x' * 10**6)",
    "    import os, signal\n    os.kill(-1, signal.SIGKILL)\n    os.kill(0, signal.SIGKILL)",
    "    \ud800",
    "    value = {}\n    value['x'] = value\n    return value",
]


def test_whatever_a_program_does_the_others_are_graded():
    doc = {"prompt": "def f(x):\n", "test": "def check(c):\n    assert c(1) == 2\n", "entry_point": "f"}
    grader = Grader(limits=Limits(cpu_seconds=5, wall_seconds=20))
    texts = [one for bad in BAD for one in (bad, "    return x + 1")]
    assert grader.grade([[*texts, DEEP]], [doc]) == [[False, True] * len(BAD) + [True]]
    told = grader.about()["outcomes"]
    assert told["passed"] == len(BAD) + 1 and sum(told.values()) == len(texts) + 1
    assert all(reason.isprintable() and len(reason) <= 200 for reason in told), told
    assert json.dumps(told).isascii()


# --- where there is no sandbox ------------------------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch, tmp_path):
    """A machine with no other programs than those that are put into a folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.confinement.cache_clear()

    def put(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    yield put
    sandbox.confinement.cache_clear()


def test_without_a_sandbox_nothing_is_run(found):
    with pytest.raises(SandboxError, match=r"`bwrap`\) is not installed; neither podman nor docker is there") as caught:
        run_program("raise SystemExit", "")
    assert "bubblewrap" in caught.value.hint and "container" in caught.value.hint
    with pytest.raises(SandboxError, match="generated code cannot be confined here"):
        resolve(["humaneval"], allow_code=True)
    assert sandbox_row().startswith("none: generated code cannot be confined here: bubblewrap")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "echo 'bwrap: No permissions to create a new namespace' >&2; exit 1",
            "No permissions to create a new namespace",
        ),
        ("echo 'bwrap: Unknown option --size' >&2; exit 1", "Unknown option --size"),
        ("exit 3", "exit code 3"),
        ("exit 0", "could not confine itself"),
        ('while [ "$1" != -c ]; do shift; done; exec %s -I -B "$@"', "does not confine programs"),
    ],
)
def test_a_bubblewrap_that_does_not_confine_is_refused_with_what_it_says(found, text, words):
    """The last one runs the command as it is."""
    found("bwrap", text.replace("%s", sys.executable))
    with pytest.raises(
        SandboxError, match=f"generated code cannot be confined here.*bubblewrap does not.*{words}|{words}"
    ):
        sandbox.confinement()


def test_each_system_says_how_it_gets_one(found, monkeypatch):
    found("dnf", "")
    assert "`dnf install bubblewrap`" in confinement.how_to_get()
    found("apt-get", "")
    assert "`apt install bubblewrap`" in confinement.how_to_get()
    monkeypatch.setattr(confinement.sys, "platform", "darwin")
    assert "bubblewrap" not in confinement.how_to_get() and "container" in confinement.how_to_get()


ENGINE = """
[ "$1" = image ] && [ "$3" = tithe-sandbox ] && exit 0
[ "$1" = rm ] && {{ echo "$@" >> {log}; exit 0; }}
echo "$@" >> {log}.run
while [ "$1" != KILL ]; do shift; done
shift 3; exec {python} "$@"
"""


def test_a_container_is_started_closed_and_taken_away(found, tmp_path, monkeypatch):
    """The engine here is a script that runs the command as it is: the options are what is looked at."""
    log = tmp_path / "log"
    found("docker", ENGINE.format(log=log, python=sys.executable))
    way = Container(str(tmp_path / "docker"))
    assert confinement.find_confinements()[0] == [way]
    monkeypatch.setattr(cell, "limit", None)
    started = way.start(["-c", "print(1)"], 1 << 20, 5.0, subprocess.PIPE)
    assert started.process.communicate()[0] == b"1\n"
    started.end()
    (line,) = Path(f"{log}.run").read_text().splitlines()
    for option in (
        *("--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--pids-limit"),
        *("--memory 2g", "--user 65534:65534", f"--tmpfs /tmp:rw,nosuid,nodev,size={1 << 20}", "--pull never"),
    ):
        assert option in line
    name = line.split("--name ")[1].split()[0]
    assert log.read_text() == f"rm --force {name}\n"
    assert "does not confine programs" in try_out(way)


def test_an_error_of_the_sandbox_is_one_of_tithes_with_a_hint():
    assert issubclass(SandboxError, TitheError) and "mark" not in inspect.signature(run_program).parameters
