"""Keep a run alive when stderr cannot be written: it goes on silently, and its record says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STDERR = 2  # its descriptor


class SteadyStream:
    """Text stream that notes a failure instead of raising it.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.trouble: str | None = None

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BlockingIOError:  # a terminal that is slow: these words are lost, later ones need not be
            self.trouble = self.trouble or "some of it was lost"
        except OSError as error:
            self.give_up(error.strerror or str(error))
        except ValueError:
            if not self.stream.closed:
                raise
            self.trouble = self.trouble or "closed"
        return len(text)

    def flush(self) -> None:
        """Do nothing: all is written at once."""

    def give_up(self, why: str) -> None:
        """Send all further output nowhere; otherwise Python fails when it flushes at exit."""
        self.trouble = self.trouble or why
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def steady_stderr() -> Iterator[None]:
    """Replace `sys.stderr` with a stream that never fails.

    Where a process was started without one, descriptor 2 is taken: the next file opened would have it, and libraries
    would write their warnings into that file.
    """
    before = sys.stderr
    if before is None:  # started with `2>&-`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != STDERR:
            os.dup2(nowhere, STDERR)
            os.close(nowhere)
    # Open as long as the process lives.
    stream = before or open(STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    steady = SteadyStream(stream)
    if before is None:
        steady.trouble = "closed"
    sys.stderr = steady
    try:
        yield
    finally:
        if before is not None:
            sys.stderr = before
