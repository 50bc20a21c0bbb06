"""Read the bytes and lines of a file, decompressing gzip and Zstandard; damage raises one `DataError`."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import zstandard

from tithe.errors import DataError
from tithe.foreign import demand_regular, foreign

Packing: TypeAlias = Literal["", "gz", "zst"]

_CHUNK = 1 << 18
# Compressed bytes given to Zstandard at once. 4 bytes can expand to 128 kB, so one call returns at most 32 MB.
_PACKED_CHUNK = 1 << 10
MOST_LINE = 1 << 26  # bytes or characters of one record; a larger one is a bad row and is never held in memory
# What the decompressors raise for truncated or damaged files.
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, UnicodeDecodeError)


class _Zstd(io.RawIOBase):
    """A decompressing stream over consecutive Zstandard frames.

    Unlike `zstandard.stream_reader` it notices when the last frame is cut off.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._packed = b""
        self._ready = b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._more():
                return 0
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _more(self) -> bool:
        # What a finished frame did not use is the beginning of the next one.
        left = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
        self._packed = self._packed or self._raw.read(_CHUNK)
        packed, self._packed = left + self._packed[:_PACKED_CHUNK], self._packed[_PACKED_CHUNK:]
        if not packed:
            if self._frame is not None and not self._frame.eof:
                raise EOFError("the last Zstandard frame is cut off")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self._ready = self._frame.decompress(packed)
        return True


def detect_packing(head: bytes) -> Packing:
    """Return how a file that begins with these bytes is compressed, "" if it is not."""
    return "gz" if head.startswith(b"\x1f\x8b") else "zst" if head.startswith(b"\x28\xb5\x2f\xfd") else ""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error from reading this file into a `DataError`."""
    with foreign(DataError, f"`{path}` cannot be read"):
        try:
            yield
        except PermissionError as error:
            raise DataError(f"no permission to read `{path}`") from error
        except UnicodeDecodeError as error:
            hint = "save it as UTF-8, e.g. `iconv -t UTF-8`"
            raise DataError(f"`{path}` is not UTF-8: {error.reason}", hint=hint) from error
        except _DAMAGE as error:
            hint = "it may be an incomplete download or copy"
            raise DataError(f"`{path}` is damaged: {str(error) or type(error).__name__}", hint=hint) from error


@contextmanager
def unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """Open the file as a stream of decompressed bytes, without its UTF-8 byte order mark."""
    demand_regular(path, DataError, hint="write it to a file first: it is read more than once")
    with path.open("rb") as raw:
        form = detect_packing(raw.read(4))
        raw.seek(0)
        plain: Any = raw
        if form == "gz":
            plain = gzip.GzipFile(fileobj=raw)
        elif form == "zst":
            plain = io.BufferedReader(_Zstd(raw), _CHUNK)
        stream = io.BufferedReader(plain, _CHUNK) if form == "gz" else plain
        if stream.peek(3)[:3] == b"\xef\xbb\xbf":  # UTF-8 byte order mark, which Excel and Windows editors write
            stream.read(3)
        yield stream


def bounded_lines(stream: io.BufferedIOBase | IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines with their ends; a line longer than `MOST_LINE` as None, or as an empty line if it is blank."""
    while line := stream.readline(MOST_LINE + 1):
        if len(line) <= MOST_LINE or line.endswith(b"\n"):
            yield line
            continue
        blank = line.isspace()
        while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
            blank = blank and line.isspace()
        yield b"\n" if blank else None


def skip_blank_lines(stream: io.BufferedReader) -> int:
    """Skip to the first line that is not blank, and return how many lines were skipped."""
    passed = 0
    while ready := stream.peek(1):
        text = ready.lstrip()
        blank = ready[: len(ready) - len(text)]
        passed += blank.count(b"\n")
        # Stop at the beginning of the line: its leading blanks belong to it.
        stream.read(blank.rfind(b"\n") + 1 if text else len(blank))
        if text:
            break
    return passed


def skip_space(stream: io.BufferedReader) -> bytes:
    """Skip white space and return the next byte, without reading it; empty at the end."""
    while ready := stream.peek(1):
        text = ready.lstrip()
        stream.read(len(ready) - len(text))
        if text:
            return text[:1]
    return b""
