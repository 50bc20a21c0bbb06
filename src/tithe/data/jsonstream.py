"""Stream the records of a JSON text: a list, an object that holds a list, or consecutive objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import IO, Any

from tithe.data.lines import MOST_LINE
from tithe.foreign import FieldTwiceError, describe_error, unique_fields

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_ROLES = frozenset(("role", "from"))
_ENOUGH = 1000  # a list with more entries is the data set, not a column of one record
_TAIL = 16  # an error this near to the buffer's end may be an incomplete number, literal or escape


def space_end(text: str, start: int) -> int:
    """Return where the white space that begins at `start` ends."""
    found = _SPACE.match(text, start)
    assert found is not None  # the pattern matches the empty text
    return found.end()


class JsonFault(Exception):
    """A fault in JSON text, with its line and column."""

    def __init__(self, what: str, line: int, column: int) -> None:
        super().__init__(what)
        self.line = line
        self.column = column


class JsonStream:
    """A reader of JSON text that holds one value and a chunk of text in memory, never the whole file.

    Args:
        text: decoded text.
    """

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._column = 1
        self._decoder = json.JSONDecoder(object_pairs_hook=self._unique)
        self._start = 0  # of the last value read
        self.wrapper: str | None = None
        self.twice: str | None = None

    @property
    def text(self) -> str:
        """The text of the last value read."""
        return self._buffer[self._start : self._at]

    def records(self, wrapper: str | None = None) -> Iterator[tuple[int, Any]]:
        """Yield (line, value) of each record; `twice` describes a field that occurs twice in it, if any.

        Args:
            wrapper: name of the list inside an object; None for a bare list or consecutive objects.

        Raises:
            JsonFault: the text is not JSON or holds no such list.
        """
        first = self._peek()
        if first == "[":
            yield from self._list()
        elif first == "{" and wrapper is None:
            yield from self._objects()
        elif first == "{":
            yield from self._object()
        else:
            raise self._fault("this is not a JSON list or object")
        if self._peek():
            raise self._fault("there is more text after the end of the list")

    def find_wrapper(self, fields: Collection[str]) -> str | None:
        """Return the name of the list of records inside an object, None if the object itself is a record.

        Args:
            fields: field names of a record; a list of such a name may still be the list of records.

        Raises:
            JsonFault: the text is not JSON.
        """
        found: str | None = None
        self._take("{")
        while self._peek() != "}":
            name = self._value()
            self._take(":")
            if self._peek() == "[" and self._opens_records():
                for number, (_, entry) in enumerate(self._list()):
                    if not number and name in fields and (not entry or entry.keys() & _ROLES):
                        return None  # the list holds the turns of one dialogue
                    if number == _ENOUGH:
                        return str(name)
                found = found or name
            else:
                self._value()
                if name in fields:
                    return None
            if self._peek() != "}":
                self._take(",")
        return found

    def _objects(self) -> Iterator[tuple[int, Any]]:
        """Yield consecutive objects, each over any number of lines."""
        while there := self._peek():
            if there != "{":
                raise self._fault(f"expected `{{`, found `{there}`")
            line = self._line
            yield line, self._value()

    def _object(self) -> Iterator[tuple[int, Any]]:
        self._take("{")
        while self._peek() != "}":
            name = self._value()
            if not isinstance(name, str):
                raise self._fault("expected a field name")
            self._take(":")
            if self._peek() == "[" and self._opens_records():
                if self.wrapper is not None:
                    raise self._fault(
                        f"two lists of records, `{self.wrapper}` and `{name}`: it is unclear which one to read"
                    )
                self.wrapper = name
                yield from self._list()
            else:
                self._value()
            if self._peek() != "}":
                self._take(",")
        self._take("}")
        if self.wrapper is None:
            raise self._fault("the object holds no list of records")

    def _list(self) -> Iterator[tuple[int, Any]]:
        self._take("[")
        more = self._peek() != "]"
        while more:
            self._peek()
            line = self._line
            yield line, self._value()
            more = self._peek() != "]"
            if more:
                self._take(",")
        self._take("]")

    def _opens_records(self) -> bool:
        """Tell whether the list that begins here holds objects."""
        ahead = self._at + 1
        while True:
            ahead = space_end(self._buffer, ahead)
            if ahead < len(self._buffer):
                return self._buffer[ahead] == "{"
            before = self._at
            if not self._fill():
                return False
            ahead -= before  # `_fill` drops what lies before the present position

    def _peek(self) -> str:
        """Return the next character that is not white space, without reading it; empty at the end."""
        while True:
            start = self._at
            self._at = space_end(self._buffer, self._at)
            self._count(start)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._fill():
                return ""

    def _take(self, wanted: str) -> None:
        found = self._peek()
        if found != wanted:
            raise self._fault(f"expected `{wanted}`, " + (f"found `{found}`" if found else "the file ends"))
        self._at += 1
        self._column += 1

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object of these fields, and remember a field that occurs twice."""
        try:
            return unique_fields(pairs)
        except FieldTwiceError as error:
            self.twice = str(error)
            return dict(pairs)

    def _value(self) -> Any:
        self._peek()
        while True:
            self.twice = None
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _TAIL
                if cut and self._fill():
                    continue
                self._count_to(error.pos)
                raise self._fault(error.msg) from None
            except Exception as error:  # a number of 4,300 digits, endless nesting, not enough memory
                raise self._fault(describe_error(error)) from error
            # A number at the end of the buffer may go on in the next chunk: 1 | 1. | 1e+
            half = isinstance(value, (int, float)) and end + 2 >= len(self._buffer)
            if not half or not self._fill():
                self._start = self._at
                self._count_to(end)
                return value

    def _fill(self) -> bool:
        """Read more text, doubling what is held, so that a large record is not parsed from its start a hundred times.

        Raises:
            JsonFault: the text held is already longer than a record may be.
        """
        if len(self._buffer) - self._at > MOST_LINE:
            raise self._fault(f"a value of more than {MOST_LINE >> 20} MiB")
        more = self._text.read(max(_CHUNK, len(self._buffer) - self._at))
        if not more:
            return False
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        return True

    def _count_to(self, end: int) -> None:
        start, self._at = self._at, end
        self._count(start)

    def _count(self, start: int) -> None:
        lines = self._buffer.count("\n", start, self._at)
        if lines:
            self._line += lines
            self._column = self._at - self._buffer.rfind("\n", start, self._at)
        else:
            self._column += self._at - start

    def _fault(self, what: str) -> JsonFault:
        return JsonFault(what, self._line, self._column)
