"""Print safely: foreign text cannot act on the terminal, and a stderr that cannot be written does not end a run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

MOST = 1000  # characters of a message: what is longer buries what it says
QUOTED = 200  # characters of one value in it, about two lines of a terminal

# Control characters of both sets (ESC is one, and so is C1's CSI), marks that turn the direction of writing, invisible
# characters, separators that end a line, half characters and tags. Joiners stay: emoji and Persian need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_QUOTES = re.compile(r"`([^`]*)`")
_USER = re.compile(r"(?<=://)[^/\s`@]*@")  # a name and a password in an address


def printable(text: str, keep: str = "") -> str:
    r"""Escape characters that a terminal acts upon or hides, such as `\x1b`.

    Args:
        text: somebody else's.
        keep: hidden characters that are let through, such as a line's end.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else escape(found[0]), text)


def escape(char: str) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, most: int = QUOTED) -> str:
    """Leave out the middle of what is longer: the beginning says what it is, and a path's end which file."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 5]} ... {text[len(text) - tail :]}"


def one_line(message: str) -> str:
    """Put a message on one line, cut it to a readable length, and hide passwords in addresses."""
    words = printable(_USER.sub("***@", " ".join(message.split())))
    return shorten(_QUOTES.sub(lambda found: f"`{shorten(found[1])}`", words), MOST)


def hint_line(hint: str) -> str:
    """Put a hint on one line; commands that it quotes stay whole, so that they can be copied."""
    return shorten(printable(_USER.sub("***@", " ".join(hint.split()))), MOST)


def counted(n: int, thing: str) -> str:
    """Format a count and its noun: `1 pass`, `1,200 passes`."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}{'es' if thing.endswith('s') else 's'}"


def json_text(value: Mapping[str, Any] | list[Any], indent: int | None = 2) -> str:
    """Format JSON for a terminal or a pipe, with control characters as JSON's own escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return _HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else json_escape(found[0]), text)


def json_escape(char: str) -> str:
    r"""Escape a character as `\uXXXX`, or as two of these above U+FFFF."""
    return "".join(f"\\u{unit:04x}" for unit in memoryview(char.encode("utf-16-le", "surrogatepass")).cast("H"))


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
