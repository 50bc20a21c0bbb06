"""Handle the signals that end a run: Ctrl-C, SIGTERM and SIGHUP stop it in the same way and keep its results."""

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

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP exists on POSIX only
SHELL = 128  # a shell reports 128 + the number of the signal that ended a process
GRACE = 0.3  # seconds in which a second signal is ignored: the terminal and the parent process may both send one


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal that ends this process."""


@dataclass
class SignalHandler:
    """Handler of the signals that end a run.

    Args:
        received: the first signal received, or None.
    """

    received: signal.Signals | None = None
    _when: float = field(default=0.0, init=False)
    _process: int = field(default_factory=os.getpid, init=False)

    @property
    def code(self) -> int:
        """Exit code that a shell would report."""
        return SHELL + (self.received or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the run at the first signal, and end the process at the second."""
        if os.getpid() != self._process:  # in a process that a library forked: the default action applies
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
        os._exit(self.code)  # safe: output files are written under other names first


@contextmanager
def handle_ending_signals() -> Iterator[SignalHandler]:
    """Handle the signals that end a process; restore their handlers afterwards.

    An ignored signal stays ignored, as `nohup` and a script's `&` intend.
    """
    ending, before = SignalHandler(), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ending.handle)
    try:
        yield ending
    finally:
        if ending.received is None:  # otherwise the process is ending, and a second signal must still work
            for number, handler in before.items():
                signal.signal(number, handler)
