"""Print safely: foreign text cannot control the terminal, and a broken stderr does not end a run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

MOST = 1000  # characters of a message
QUOTED = 200  # characters of one value in a message, about two lines of a terminal

# Control characters C0 and C1 (with ESC and CSI), marks that change the writing direction, invisible characters, line
# separators, surrogates and tags. Joiners are left alone: emoji and Persian need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_QUOTES = re.compile(r"`([^`]*)`")
_USER = re.compile(r"(?<=://)[^/\s`@]*@")  # user name and password in a URL


def printable(text: str, keep: str = "") -> str:
    r"""Escape the characters that a terminal interprets or hides, such as `\x1b`.

    Args:
        text: text from a file, a server or another program.
        keep: hidden characters to leave alone, such as a newline.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else escape(found[0]), text)


def escape(char: str) -> str:
    """Write a character as a Python escape."""
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, most: int = QUOTED) -> str:
    """Cut the middle out of a long text: its beginning says what it is, and the end of a path names the file."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 5]} ... {text[len(text) - tail :]}"


def one_line(message: str) -> str:
    """Put a message on one line, cut it to a readable length, and hide passwords in URLs."""
    words = printable(_USER.sub("***@", " ".join(message.split())))
    return shorten(_QUOTES.sub(lambda found: f"`{shorten(found[1])}`", words), MOST)


def hint_line(hint: str) -> str:
    """Put a hint on one line; quoted commands are not cut, so that they can be copied."""
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
    """Text stream that records a failure instead of raising it.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.trouble: str | None = None

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BlockingIOError:  # a slow terminal: this text is lost, later text may get through
            self.trouble = self.trouble or "some of it was lost"
        except OSError as error:
            self.give_up(error.strerror or str(error))
        except ValueError:
            if not self.stream.closed:
                raise
            self.trouble = self.trouble or "closed"
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def give_up(self, why: str) -> None:
        """Discard all further output; otherwise Python fails when it flushes at exit."""
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

    If the process was started without stderr, occupy descriptor 2: otherwise the next file opened would get it, and
    libraries would write their warnings into that file.
    """
    before = sys.stderr
    if before is None:  # started with `2>&-`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != STDERR:
            os.dup2(nowhere, STDERR)
            os.close(nowhere)
    # Stays open as long as the process lives.
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
