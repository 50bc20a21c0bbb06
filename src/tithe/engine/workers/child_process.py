"""Processes that this one starts: how they are started, heard and ended.

A child process ends when the one that started it has ended, however that ended: kill -9 included. The kernel's own
signal for this (`PR_SET_PDEATHSIG`) is not used: it is sent when the *thread* that started the child ends, and ours are
started from threads that end before the run does. The end of a pipe is no sure sign either, as a process forked
meanwhile may hold the other end. So the child looks who its parent is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from typing import IO

PARENT = "TITHE_PARENT"  # environment variable: id of the process that started this one
LOOK = 0.5  # seconds between two looks
PATIENCE = 10.0  # seconds in which a process whose end of the line is closed has ended


class ChildProcess:
    """A Python module that runs as a process of its own and is spoken to through a pair of sockets.

    It is in a group of its own: Ctrl-C reaches the one that started it alone, and that one ends it.

    Args:
        module: is given the number of its end of the line, and calls `end_with_parent` first.
        variables: of its environment, besides those of this process.
    """

    def __init__(self, module: str, variables: Mapping[str, str] | None = None) -> None:
        self.channel, theirs = Pipe()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - what it says; open as long as it lives
        # The same modules, found in the same order; and nothing that lies in the present folder by chance.
        own = {**child_variables(), "PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=subprocess.STDOUT,
                process_group=0,
                env={**os.environ, **(variables or {}), **own},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> tuple[int, str] | None:
        """Wait for its end; return its exit code and a clause with its last words, None where it goes on."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        line = last_line(self._words)
        return code, f", and its last words were: {line}" if line else ""

    def close(self) -> None:
        """End it, and wait until it has ended; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self._words.close()


def last_line(words: IO[bytes]) -> str:
    """Return the last line with anything in it, or nothing."""
    words.seek(0)
    lines = [line.strip() for line in words.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def search_path() -> str:
    """Return where this process finds its modules, for `PYTHONPATH`."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def child_variables() -> Mapping[str, str]:
    """Return what the environment of a child has to hold for `end_with_parent`."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Watch the process that started this one, and end at once when it is gone.

    The parent tells its id, so that one which died before this call is noticed too.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    Thread(target=_watch, args=(parent,), name="end-with-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
