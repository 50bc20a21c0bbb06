"""Programs that nobody vouches for, each judged from a second sandbox that it cannot see.

One sandbox runs the solution, the other the tests; `cell.py` is what runs in both. This process carries the messages
between them and reads nothing of them but their length and kind. Whatever a solution prints, makes or answers ends
itself alone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tithe.lab.evaluate.confinement import (
    PATIENCE,
    PYTHON_FLAGS,
    Bubblewrap,
    Confinement,
    SandboxError,
    how_to_get,
    look,
)

CELL = Path(__file__).with_name("cell.py")
HEAD = struct.Struct(">cI")  # kind and length: `cell.py` has the same
JOB, READY, LOADED, CALL, REPLY, PASSED, FAILED = (bytes([letter]) for letter in b"jrlcaPF")
LONGEST = 1 << 26  # bytes of a message
WORDS = 200  # letters of a reason
GRACE = 2.0  # seconds that an ended process has to be gone
OUT_OF_TIME = "out of time"  # so begins the reason of a program that was stopped
KILLED_AT = 128  # an exit code beyond it is a signal, as in a shell


@dataclass(frozen=True)
class Limits:
    """What a program may use up; the solution and its tests have each as much.

    Args:
        cpu_seconds: of processor time.
        wall_seconds: until it is stopped, whatever it does.
        memory_bytes: of address space.
        file_bytes: of each file that it writes.
        folder_bytes: of all its files together, which are kept in memory.
        open_files: at once.
        threads: at once; other processes it cannot start.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24
    folder_bytes: int = 1 << 26
    open_files: int = 64
    threads: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
        passed: its tests came to their last line.
        reason: why not, where they did not.
        confined: what kept it in: `network`, `processes` and `files`, each with its means.
    """

    passed: bool
    reason: str = ""
    confined: Mapping[str, str] = field(default_factory=dict)


class Stop(Exception):
    """Why a half of a program says nothing more."""


class Half:
    """The solution, or its tests, in a sandbox.

    Raises:
        SandboxError: it could not be started.
    """

    def __init__(self, where: Confinement, limits: Limits, stderr: int = subprocess.DEVNULL) -> None:
        self.limits = limits
        command = [*PYTHON_FLAGS, "-c", CELL.read_text("utf-8")]
        self.started = where.start(command, limits.folder_bytes, limits.wall_seconds + 2 * PATIENCE, stderr)
        process = self.started.process
        assert process.stdin is not None and process.stdout is not None
        self.writes, self.reads = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self.writes, False)
        os.set_blocking(self.reads, False)

    def send(self, kind: bytes, body: bytes, until: float) -> None:
        """Write a message.

        Raises:
            Stop: the process ended, or there is no more time.
        """
        left = memoryview(HEAD.pack(kind, len(body)) + body)
        while left:
            self.wait(self.writes, selectors.EVENT_WRITE, until)
            try:
                left = left[os.write(self.writes, left) :]
            except BrokenPipeError:
                raise Stop(self.ended()) from None

    def receive(self, until: float) -> tuple[bytes, bytes]:
        """Read a message: its kind, its text.

        Raises:
            Stop: the process ended, there is no more time, or the message is longer than any may be.
        """
        kind, size = HEAD.unpack(self.read(HEAD.size, until))
        if size > LONGEST:
            raise Stop(f"answered with more than {LONGEST:,} bytes")
        return kind, self.read(size, until)

    def read(self, size: int, until: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self.wait(self.reads, selectors.EVENT_READ, until)
            part = os.read(self.reads, min(size - len(parts), 1 << 20))
            if not part:
                raise Stop(self.ended())
            parts += part
        return bytes(parts)

    def wait(self, place: int, event: int, until: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(place, event)
            left = until - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise Stop(f"{OUT_OF_TIME} after {self.limits.wall_seconds:g} s")

    def ended(self) -> str:
        """In words, how a process ended that told nothing."""
        try:
            code = self.started.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        number = code - KILLED_AT if code > KILLED_AT else -code
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return f"{OUT_OF_TIME} after {self.limits.cpu_seconds} s of the processor, or killed"
        return f"ended by signal {number}" if number > 0 else f"left early with exit code {code}"

    def close(self) -> None:
        process = self.started.process
        self.started.end()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        process.wait()


def run_program(
    solution: str, tests: str, limits: Limits | None = None, *, given: str = "", entry_point: str = ""
) -> Outcome:
    """Run a solution and, in another sandbox, the tests that call it; passed means that their last line was reached.

    Args:
        solution: the program.
        tests: use the names of the solution, whose functions get and return plain values.
        limits: of either.
        given: beginning of the solution that the tests may rely on; they see its names instead of the solution's.
        entry_point: the name that is always the solution's.

    Raises:
        SandboxError: nothing here can confine a program, or one could not be started.
    """
    return run_in(confinement(), solution, tests, limits or Limits(), given, entry_point)


def run_in(
    where: Confinement, solution: str, tests: str, limits: Limits, given: str = "", entry_point: str = ""
) -> Outcome:
    means = where.means
    with half(where, limits) as tested, half(where, limits) as judge:
        begin(tested, {"role": "solution", "code": solution})
        begin(judge, {"role": "tests", "code": tests, "given": given, "entry_point": entry_point})
        for one in (tested, judge):
            await_ready(one)
        try:
            reason = relayed(tested, judge, time.monotonic() + limits.wall_seconds)
        except Stop as stop:
            reason = str(stop)
    return Outcome(not reason, reason, means)


@contextmanager
def half(where: Confinement, limits: Limits) -> Iterator[Half]:
    one = Half(where, limits)
    try:
        yield one
    finally:
        one.close()


def begin(one: Half, job: dict[str, Any]) -> None:
    """Give a process what it is to run."""
    text = json.dumps({**job, "limits": asdict(one.limits)}).encode()
    try:
        one.send(JOB, text, time.monotonic() + PATIENCE)
    except Stop as stop:
        raise unconfined(stop) from None


def await_ready(one: Half) -> None:
    """Wait until a process has given up what it can give up, which comes before all else.

    Raises:
        SandboxError: it has not; without limits nothing is run.
    """
    try:
        kind, _ = one.receive(time.monotonic() + PATIENCE)
    except Stop as stop:
        raise unconfined(stop) from None
    assert kind == READY


def unconfined(stop: Stop) -> SandboxError:
    return SandboxError(
        f"the process for generated code could not confine itself: it {stop}", hint="`tithe doctor` says what is there"
    )


def relayed(tested: Half, judge: Half, until: float) -> str:
    """Carry questions and answers, and return why the program does not pass; nothing if it does.

    The tests alone give the verdict: their pipe is one that no solution has.
    """
    kind, body = tested.receive(until)
    if kind == FAILED:
        return words(body)
    while kind in (LOADED, REPLY):
        said, body = judge.receive(until)
        if said != CALL:
            return "" if said == PASSED else words(body)
        tested.send(CALL, body, until)
        kind, body = tested.receive(until)
        judge.send(REPLY, body, until)
    return "answered with something else than an answer"


def words(body: bytes) -> str:
    """Return a program's words without what a terminal would obey."""
    text = body.decode("utf-8", "replace")[:WORDS]
    return "".join(letter if letter.isprintable() else " " for letter in text) or "failed without a word"


# Harmless where it is not refused.
PROBE = """
import os, socket, threading
def refused(*calls):
    open_ones = []
    for call in calls:
        try:
            call()
        except OSError:
            continue
        open_ones.append(call.__name__)
    return open_ones
def write():
    os.mkdir("/tithe-probe")
    os.rmdir("/tithe-probe")
def connect():
    socket.create_connection(("127.0.0.1", 22), timeout=1)
def fork():
    if os.fork() == 0:
        os._exit(0)
def signal():
    os.kill(os.getppid(), 0)
def open_to():
    thread = threading.Thread(target=open, args=("mine", "w"))
    thread.start()
    thread.join()
    assert os.path.exists("mine")
    return refused(write, connect, *PLUS)
"""


@cache
def confinement() -> Confinement:
    """Return the way in which programs are confined here, tried out once.

    Raises:
        SandboxError: there is none.
    """
    found = look()
    for way in found.ways:
        reason = tried(way)
        if not reason:
            return way
        found.missing.append(reason)
    raise SandboxError(f"generated code cannot be confined here: {'; '.join(found.missing)}", hint=how_to_get())


def tried(way: Confinement) -> str:
    """Run a small program, and return why this way does not confine it; nothing if it does."""
    name = type(way).__name__.lower()
    try:
        started = way.start([*PYTHON_FLAGS, "-c", "pass"], Limits().folder_bytes, PATIENCE, subprocess.PIPE)
        try:
            _, said = started.process.communicate(timeout=PATIENCE)
        finally:
            started.end()
        if started.process.returncode:
            lines = said.decode("utf-8", "replace").strip().splitlines() or [f"exit code {started.process.returncode}"]
            return f"{name} does not work: {words(lines[-1].encode())}"
        own = "PLUS = (fork, signal)\n" if isinstance(way, Bubblewrap) else "PLUS = ()\n"
        outcome = run_in(way, PROBE + own, "assert open_to() == [], open_to()", Limits())
    except subprocess.TimeoutExpired:
        return f"{name} does not work: it has not started after {PATIENCE:g} s"
    except SandboxError as error:
        return f"{name} does not work: {error}"
    return "" if outcome.passed else f"{name} does not confine programs: {outcome.reason}"


def sandbox_row() -> str:
    """Say in one line what confines generated code here, for the listing of this machine."""
    try:
        way = confinement()
    except SandboxError as error:
        return f"none: {error}; {error.hint}"
    return way.means["files"]
