"""Programs that nobody vouches for, each in a process of its own with little time, little memory and nothing to reach.

This keeps accidents and the usual tricks away from this machine and from the result. It is no virtual machine: the
process runs on the same kernel, and code that was written against this very file may pretend to have passed.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tithe.errors import TitheError

CELL = Path(__file__).with_name("cell.py")
MOST_TOLD = 1 << 16  # bytes that a program may tell
OUT_OF_TIME = "out of time"  # so begins the reason of a program that was stopped
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # all that is in it


@dataclass(frozen=True)
class Limits:
    """What a program may use up.

    Args:
        cpu_seconds: of processor time.
        wall_seconds: until it is stopped, whatever it does.
        memory_bytes: of address space.
        file_bytes: of each file that it writes.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
        passed: it came to its last line.
        reason: why not, where it did not.
        confined: what kept it in: `network`, `processes` and `files`, each with its means.
    """

    passed: bool
    reason: str = ""
    confined: Mapping[str, str] = field(default_factory=dict)


class SandboxError(TitheError): ...


def run_program(solution: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Run a solution and, in the same program, what it is tested with; passed means that the last line was reached.

    Raises:
        SandboxError: the process that was to run it could not be started or could not confine itself.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="tithe-cell-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        text = f"{solution}\n{tests}\n"
        for name, part in (("solution.py", solution), ("program.py", text)):
            (place / name).write_bytes(part.encode("utf-8", "surrogatepass"))
        return watched(place, limits)


def watched(place: Path, limits: Limits) -> Outcome:
    """Start the process, hear what it tells, and stop it."""
    nonce = secrets.token_hex(16)
    told, tell = os.pipe()
    mark, give = os.pipe()
    os.write(give, nonce.encode())
    os.close(give)
    call = [sys.executable, "-I", "-B", "-X", "utf8", str(CELL), str(tell), str(mark), json.dumps(asdict(limits))]
    try:
        process = subprocess.Popen(
            call,
            cwd=place,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(tell, mark),
            start_new_session=True,
        )
    except OSError as error:
        os.close(told)
        raise SandboxError(f"the process for generated code cannot be started: {error.strerror or error}") from error
    finally:
        os.close(tell)
        os.close(mark)
    try:
        lines, in_time = hear(told, limits.wall_seconds)
    finally:
        os.close(told)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return judged(lines, nonce, code, in_time, limits)


def hear(told: int, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """What the process tells, until it ends, tells too much or has had its time."""
    until, heard = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(told, selectors.EVENT_READ)
        while len(heard) < MOST_TOLD:
            left = until - time.monotonic()
            if left <= 0 or not selector.select(left):
                return parsed(heard), False
            part = os.read(told, 4096)
            if not part:
                break
            heard += part
    return parsed(heard), True


def parsed(heard: bytes) -> list[dict[str, Any]]:
    """The lines that are JSON objects; a program may write anything there."""
    found = []
    for line in heard.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def judged(lines: list[dict[str, Any]], nonce: str, code: int, in_time: bool, limits: Limits) -> Outcome:
    """Only the mark counts: a program that ends early, with whatever exit code, does not have it."""
    confined = lines[0].get("confined") if lines else None
    if not isinstance(confined, dict):
        if not in_time:
            return Outcome(False, f"not begun within {limits.wall_seconds:g} s")
        raise SandboxError(
            f"the process for generated code could not confine itself: it ended with {code}",
            hint="without limits nothing is run",
        )
    last = lines[-1]
    if last.get("mark") == nonce:
        return Outcome(True, "", confined)
    if not in_time:
        return Outcome(False, f"{OUT_OF_TIME} after {limits.wall_seconds:g} s", confined)
    if "failed" in last:
        return Outcome(False, str(last["failed"])[:200], confined)
    return Outcome(False, ended(code, limits), confined)


def ended(code: int, limits: Limits) -> str:
    """In words, how a process ended that told nothing."""
    if -code in (signal.SIGXCPU, signal.SIGKILL):
        return f"{OUT_OF_TIME} after {limits.cpu_seconds} s of the processor, or killed"
    if code < 0:
        return f"ended by signal {-code}"
    return f"left early with exit code {code}"
