"""Put foreign text into a card: it stays text whatever it contains, and names no folder of this machine."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from tithe.printable import printable, shorten

MOST = 300  # characters of one value on a card
# A path from the root or the home folder, also after a separator of a pipeline or a spec.
_PATH = re.compile(
    r"(?<![\w./~<-])(?:~[\w.-]*/|/|[A-Za-z]:\\)(?:[^\s'\"|@:;,()<>]*[/\\])?(?P<name>[^\s'\"|@:;,()<>/\\]+)"
)
_TICKS = re.compile(r"`+")


def without_folders(text: str) -> str:
    """Cut absolute paths down to their last part: a card is read by others."""
    if text.startswith(("/", "~/")) and "->" not in text:  # a path as a whole, which may have spaces
        return PurePath(text).name or "…"
    return _PATH.sub(lambda found: found["name"], text)


def one_line_of(value: Any, most: int = MOST) -> str:
    """Return a value as text on one line, without what a terminal or an editor would hide."""
    return shorten(printable(" ".join(without_folders(str(value)).split())), most)


def code(value: Any) -> str:
    """Return a value as a code span, which no markdown, HTML or table can break out of."""
    text = one_line_of(value)
    if not text:
        return "-"
    ticks = "`" * (longest_run(text) + 1)
    # A bar ends a table's cell even inside a code span, unless a backslash precedes it.
    text = text.replace("|", "\\|")
    edge = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


def fenced(text: str, language: str) -> str:
    """Return a text as a block of code that ends where it ends."""
    ticks = "`" * max(3, longest_run(text) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max((len(found) for found in _TICKS.findall(text)), default=0)
