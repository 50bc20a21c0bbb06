"""Signals that end a run: Ctrl-C, SIGTERM and SIGHUP stop it in the same way, and keep what it has."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one is POSIX's
SHELL = 128  # a shell's exit code of what a signal ended, less the signal's number
GRACE = 0.3  # seconds in which the same wish may come again: a terminal and whoever started us both send it


class Interrupted(KeyboardInterrupt):
    """A signal wants this process to end; raised in the main thread, wherever that is."""


@dataclass
class Ending:
    """What was received.

    Args:
        received: the first signal, or None.
    """

    received: signal.Signals | None = None
    _when: float = field(default=0.0, init=False)
    _process: int = field(default_factory=os.getpid, init=False)

    @property
    def code(self) -> int:
        """Exit code, as shells have it."""
        return SHELL + (self.received or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the run at the first signal, and end the process at the second."""
        if os.getpid() != self._process:  # a fork of a library: it ends as it would without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is None:
            self.received, self._when = signal.Signals(number), time.monotonic()
            raise Interrupted(self.received.name)
        if time.monotonic() - self._when < GRACE:
            return
        with suppress(OSError):
            os.write(2, b"error: ended at once, by a second signal\n")
        os._exit(self.code)  # files are written under other names first: none is torn


@contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """Handle the signals that end a process, and put back what handled them before.

    A signal that is ignored stays ignored: `nohup` and a script's `&` mean it so.
    """
    ending, before = Ending(), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ending.handle)
    try:
        yield ending
    finally:
        if ending.received is None:  # else the process is about to end, and may have to wait for threads
            for number, handler in before.items():
                signal.signal(number, handler)
