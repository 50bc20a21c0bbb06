"""A child process ends when the one that started it has ended, however that ended: kill -9 included.

The kernel's own signal for this (`PR_SET_PDEATHSIG`) is not used: it is sent when the *thread* that started the child
ends, and ours are started from threads that end before the run does. The end of a pipe is no sure sign either, as
a process forked meanwhile may hold the other end. So the child looks who its parent is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from threading import Thread

PARENT = "TITHE_PARENT"  # environment variable: id of the process that started this one
LOOK = 0.5  # seconds between two looks


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
