"""Start child processes, talk to them, and end them.

A child ends when its parent has ended, however that happened: kill -9 included. The kernel's own signal for this
(`PR_SET_PDEATHSIG`) cannot be used: it is sent when the *thread* that started the child ends, and ours are started from
threads that end before the run does. A closed pipe is no sure sign either, as another forked process may hold the other
end. So the child polls its parent's process id.
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

PARENT = "TITHE_PARENT"  # environment variable: process id of the parent
POLL = 0.5  # seconds between two checks of the parent
PATIENCE = 10.0  # seconds to wait for the end of a process that closed its channel


class ChildProcess:
    """A Python module that runs as a process of its own, connected through a socket pair.

    It has a process group of its own: Ctrl-C reaches only the parent, which then ends it.

    Args:
        module: gets the file descriptor of its socket as argument, and must call `end_with_parent` first.
        variables: environment variables in addition to those of this process.
    """

    def __init__(self, module: str, variables: Mapping[str, str] | None = None) -> None:
        self.channel, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - stdout and stderr; open as long as the process runs
        # The same modules in the same search order, and none that happen to be in the current folder.
        own = {**child_variables(), "PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                process_group=0,
                env={**os.environ, **(variables or {}), **own},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> tuple[int, str] | None:
        """Wait for the end; return the exit code and a clause with the last line of output, or None if it runs on."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        line = last_line(self._output)
        return code, f", and its last words were: {line}" if line else ""

    def close(self) -> None:
        """Kill the process and wait until it has ended; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self._output.close()


def last_line(output: IO[bytes]) -> str:
    """Return the last line that is not blank, or an empty string."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def search_path() -> str:
    """Return this process's module search path, for `PYTHONPATH`."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def child_variables() -> Mapping[str, str]:
    """Return the environment variables that a child needs for `end_with_parent`."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Start a thread that ends this process as soon as its parent is gone.

    The parent passes its id in the environment, so that a parent that died before this call is noticed too.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    Thread(target=_poll_parent, args=(parent,), name="end-with-parent", daemon=True).start()


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
