"""A child process ends with its parent, however the parent ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.e2e.command import alive, child
from tithe.engine.workers.child_process import PARENT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed parent is a matter of POSIX")

BUSY = "from tithe.engine.workers.child_process import end_with_parent\nend_with_parent()\nwhile True: pass"
# A thread starts it and ends; a fork that outlives everybody holds on to all that the parent had open.
FATHER = f"""
import os, subprocess, sys, threading, time
from tithe.engine.workers.child_process import child_variables
def start():
    global child
    child = subprocess.Popen([sys.executable, "-c", {BUSY!r}], env={{**os.environ, **child_variables()}})
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(child.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_it_ends_with_a_killed_parent_and_not_before() -> None:
    father = child(FATHER)
    assert father.stdout is not None
    pid = int(father.stdout.readline())
    assert not gone(pid, 1.5)  # the thread that started it has ended long ago
    father.kill()
    father.wait()
    assert gone(pid, 10)
    father.communicate()


def test_a_parent_that_died_before_it_was_looked_at() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    process = subprocess.run(
        [sys.executable, "-c", BUSY], env={**os.environ, PARENT: str(dead.pid)}, timeout=60, check=False
    )
    assert process.returncode == 1


@pytest.mark.parametrize(
    "module", ["tithe.lab.experiment.worker", "tithe.runners.tokeniser", "tithe.engine.workers.worker_main"]
)
def test_every_child_looks(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each child ends at once if its parent is gone, though its input stays open."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(ours)],
        stdin=ours,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[ours],
        env={**os.environ, PARENT: str(dead.pid)},
    )
    try:
        assert process.wait(120) == 1
    finally:
        os.close(ours)
        os.close(theirs)
