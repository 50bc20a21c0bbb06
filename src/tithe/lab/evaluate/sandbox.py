"""Run untrusted programs, each tested from a second sandbox that it cannot see.

One sandbox runs the solution, the other the tests; both run `cell.py`. This process relays the messages between them
and looks only at their length and kind. Whatever a solution prints, writes or answers can end only its own run.
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
    find_confinements,
    how_to_get,
)

CELL = Path(__file__).with_name("cell.py")
HEAD = struct.Struct(">cI")  # kind and length, as in `cell.py`
JOB, READY, LOADED, CALL, REPLY, PASSED, FAILED = (bytes([letter]) for letter in b"jrlcaPF")
LONGEST = 1 << 26  # bytes of a message
WORDS = 200  # characters shown of a reason
GRACE = 2.0  # seconds to wait for the exit code of a process that closed its pipe
OUT_OF_TIME = "out of time"  # the reason of a program that was stopped begins with it
KILLED_AT = 128  # larger exit codes mean a signal, as in a shell


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program; they hold for the solution and for its tests separately.

    Args:
        cpu_seconds: processor time.
        wall_seconds: time until it is stopped, whatever it does.
        memory_bytes: address space.
        file_bytes: size of each file that it writes.
        folder_bytes: size of all its files together, which are held in memory.
        open_files: files open at the same time.
        threads: threads at the same time; it can start no other processes.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24
    folder_bytes: int = 1 << 26
    open_files: int = 64
    threads: int = 64


@dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended.

    Args:
        passed: whether its tests reached their last line.
        reason: why not, if they did not.
        confined: what confined it: `network`, `processes` and `files`, each with its mechanism.
    """

    passed: bool
    reason: str = ""
    confined: Mapping[str, str] = field(default_factory=dict)


class Stop(Exception):
    """Why one half of a program sends no more messages."""


class Half:
    """One half of a program, the solution or its tests, in its own sandbox.

    Raises:
        SandboxError: it cannot be started.
    """

    def __init__(self, where: Confinement, limits: Limits, stderr: int = subprocess.DEVNULL) -> None:
        self.limits = limits
        command = [*PYTHON_FLAGS, "-c", CELL.read_text("utf-8")]
        self.started = where.start(command, limits.folder_bytes, limits.wall_seconds + 2 * PATIENCE, stderr)
        process = self.started.process
        assert process.stdin is not None and process.stdout is not None
        self.writes, self.reads = process.stdin.fileno(), process.stdout.fileno()
        # A program that stops reading or writing must not block us: `wait` has the deadline.
        os.set_blocking(self.writes, False)
        os.set_blocking(self.reads, False)

    def send(self, kind: bytes, body: bytes, until: float) -> None:
        """Send a message.

        Raises:
            Stop: the process ended, or the time is up.
        """
        left = memoryview(HEAD.pack(kind, len(body)) + body)
        while left:
            self.wait(self.writes, selectors.EVENT_WRITE, until)
            try:
                left = left[os.write(self.writes, left) :]
            except BrokenPipeError:
                raise Stop(self.describe_end()) from None

    def receive(self, until: float) -> tuple[bytes, bytes]:
        """Receive a message and return its kind and body.

        Raises:
            Stop: the process ended, the time is up, or the message is too long.
        """
        kind, size = HEAD.unpack(self.read(HEAD.size, until))
        if size > LONGEST:
            raise Stop(f"answered with more than {LONGEST:,} bytes")
        return kind, self.read(size, until)

    def read(self, size: int, until: float) -> bytes:
        """Read exactly so many bytes.

        Raises:
            Stop: the process ended, or the time is up.
        """
        parts = bytearray()
        while len(parts) < size:
            self.wait(self.reads, selectors.EVENT_READ, until)
            part = os.read(self.reads, min(size - len(parts), 1 << 20))
            if not part:
                raise Stop(self.describe_end())
            parts += part
        return bytes(parts)

    def wait(self, place: int, event: int, until: float) -> None:
        """Wait until a pipe can be read or written.

        Raises:
            Stop: the time is up.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(place, event)
            left = until - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise Stop(f"{OUT_OF_TIME} after {self.limits.wall_seconds:g} s")

    def describe_end(self) -> str:
        """Say how the process ended."""
        try:
            code = self.started.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        number = code - KILLED_AT if code > KILLED_AT else -code
        # Out of processor time, a program gets SIGXCPU and then SIGKILL; a container out of time or of memory gets
        # SIGKILL as well, and the cases cannot be told apart.
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return f"{OUT_OF_TIME} after {self.limits.cpu_seconds} s of processor time, or killed"
        return f"ended by signal {number}" if number > 0 else f"exited early with code {code}"

    def close(self) -> None:
        """Kill the process and close its pipes."""
        process = self.started.process
        self.started.end()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        process.wait()


def run_program(
    solution: str, tests: str, limits: Limits | None = None, *, given: str = "", entry_point: str = ""
) -> ProgramOutcome:
    """Run a solution in one sandbox, and the tests that call it in another.

    Args:
        solution: the program.
        tests: code that uses names of the solution, whose functions take and return plain values; they pass if their
            last line is reached.
        limits: resource limits of each half.
        given: beginning of the solution that the tests may rely on; they see its names instead of the solution's.
        entry_point: name that is always taken from the solution.

    Raises:
        SandboxError: no sandbox works here, or one could not be started.
    """
    return run_in(confinement(), solution, tests, limits or Limits(), given, entry_point)


def run_in(
    where: Confinement, solution: str, tests: str, limits: Limits, given: str = "", entry_point: str = ""
) -> ProgramOutcome:
    """Run a solution and its tests in sandboxes of this kind; see `run_program`."""
    means = where.means
    # Both are started before either is waited for, as a start takes a while.
    with open_half(where, limits) as tested, open_half(where, limits) as judge:
        send_job(tested, {"role": "solution", "code": solution})
        send_job(judge, {"role": "tests", "code": tests, "given": given, "entry_point": entry_point})
        for one in (tested, judge):
            await_ready(one)
        try:
            reason = relay(tested, judge, time.monotonic() + limits.wall_seconds)
        except Stop as stop:
            reason = str(stop)
    return ProgramOutcome(not reason, reason, means)


@contextmanager
def open_half(where: Confinement, limits: Limits) -> Iterator[Half]:
    """Start one half, and end it afterwards."""
    one = Half(where, limits)
    try:
        yield one
    finally:
        one.close()


def send_job(one: Half, job: dict[str, Any]) -> None:
    """Send a half its code and limits."""
    text = json.dumps({**job, "limits": asdict(one.limits)}).encode()
    try:
        one.send(JOB, text, time.monotonic() + PATIENCE)
    except Stop as stop:
        raise unconfined(stop) from None


def await_ready(one: Half) -> None:
    """Wait until a half has set its own resource limits; it runs no code before.

    Raises:
        SandboxError: it could not.
    """
    try:
        kind, _ = one.receive(time.monotonic() + PATIENCE)
    except Stop as stop:
        raise unconfined(stop) from None
    assert kind == READY


def unconfined(stop: Stop) -> SandboxError:
    """Return the error of a half that ended before it had limits."""
    return SandboxError(
        f"the process for generated code could not confine itself: it {stop}",
        hint="`tithe doctor` shows whether a sandbox works",
    )


def relay(tested: Half, judge: Half, until: float) -> str:
    """Relay questions and answers, and return why the program does not pass; an empty text if it does.

    Only the tests decide: the solution has no access to their pipe.
    """
    kind, body = tested.receive(until)
    if kind == FAILED:
        return printable_words(body)
    while kind in (LOADED, REPLY):
        said, body = judge.receive(until)
        if said != CALL:
            return "" if said == PASSED else printable_words(body)
        tested.send(CALL, body, until)
        kind, body = tested.receive(until)
        judge.send(REPLY, body, until)
    return "sent a message that is not an answer"


def printable_words(body: bytes) -> str:
    """Return a program's message without control characters."""
    text = body.decode("utf-8", "replace")[:WORDS]
    return "".join(letter if letter.isprintable() else " " for letter in text) or "failed without a message"


# A solution that tries to break out, harmlessly, and returns what was not refused.
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
    """Return the first kind of sandbox that works on this machine; they are tried only once.

    Raises:
        SandboxError: none works.
    """
    found, missing = find_confinements()
    for way in found:
        reason = try_out(way)
        if not reason:
            return way
        missing.append(reason)
    raise SandboxError(f"generated code cannot be confined here: {'; '.join(missing)}", hint=how_to_get())


def try_out(way: Confinement) -> str:
    """Run a small program, and return why this sandbox does not work or confine it; an empty text if it does."""
    name = type(way).__name__.lower()
    try:
        started = way.start([*PYTHON_FLAGS, "-c", "pass"], Limits().folder_bytes, PATIENCE, subprocess.PIPE)
        try:
            _, said = started.process.communicate(timeout=PATIENCE)
        finally:
            started.end()
        if started.process.returncode:
            lines = said.decode("utf-8", "replace").strip().splitlines() or [f"exit code {started.process.returncode}"]
            return f"{name} does not work: {printable_words(lines[-1].encode())}"
        own = "PLUS = (fork, signal)\n" if isinstance(way, Bubblewrap) else "PLUS = ()\n"
        outcome = run_in(way, PROBE + own, "assert open_to() == [], open_to()", Limits())
    except subprocess.TimeoutExpired:
        return f"{name} does not work: it has not started after {PATIENCE:g} s"
    except SandboxError as error:
        return f"{name} does not work: {error}"
    return "" if outcome.passed else f"{name} does not confine programs: {outcome.reason}"


def sandbox_row() -> str:
    """Say in one line what confines generated code here, for `tithe doctor`."""
    try:
        way = confinement()
    except SandboxError as error:
        return f"none: {error}; {error.hint}"
    return way.means["files"]
