"""Ids of examples that depend on their content, not on where they stand, and the set of ids seen so far."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from tithe.records import Message


class Seen:
    """A set of numbers from 0 to 2^64 - 1 that only grows; quick where they are spread evenly, as hashes are.

    A table of open addressing, at most two thirds full: a number lies where its highest bits say, or in the next free
    place.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 64))
        self._shift = 64 - 6  # leaves as many bits as name a place
        self._count = 0  # in the table
        self._zero = False  # 0 marks a free place, and so is kept apart

    def add(self, number: int) -> bool:
        """Take a number in; whether it is new."""
        table, place, last = self._table, number >> self._shift, len(self._table) - 1
        while there := table[place]:
            if there == number:
                return False
            place = place + 1 & last
        if not number:
            new, self._zero = not self._zero, True
            return new
        table[place] = number
        self._count += 1
        if 3 * self._count > 2 * last:
            self._grow()
        return True

    def __contains__(self, number: int) -> bool:
        table, place, last = self._table, number >> self._shift, len(self._table) - 1
        while (there := table[place]) and there != number:
            place = place + 1 & last
        return bool(there) or (self._zero and not number)

    def __len__(self) -> int:
        return self._count + self._zero

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return len(self._table) * self._table.itemsize

    def _grow(self) -> None:
        """Twice the places. Taken in by size, each number lies where its bits say or right behind the one before."""
        old = np.frombuffer(self._table, dtype=np.uint64)
        numbers = np.sort(old[old != 0])
        self._shift -= 1
        home, i = (numbers >> np.uint64(self._shift)).astype(np.int64), np.arange(len(numbers))
        place = np.maximum.accumulate(home - i) + i
        table = np.zeros(2 * len(old), dtype=np.uint64)
        inside = place < len(table)
        table[place[inside]] = numbers[inside]
        self._table = array("Q", table.tobytes())
        self._count -= int((~inside).sum())
        for number in numbers[~inside].tolist():  # the last places are taken: on from the first
            self.add(number)


def first_half(key: bytes) -> int:
    """The first 64 bits of a hash."""
    return int.from_bytes(key[:8], "little")


_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode


def content_hash(
    prompt: Sequence[Message], response: Message, tools: Sequence[Mapping[str, Any]], part: str | None = None
) -> int:
    """64 bits of the canonical JSON of an example.

    Args:
        prompt: messages before the response.
        response: the message to be scored.
        tools: function schemas.
        part: the separate `input` of a record; joined or apart, the two render differently in some templates.

    Raises:
        UnicodeEncodeError: a lone surrogate somewhere.
    """
    parts = [f"[{','.join(map(_message, prompt))}]", _message(response), _encode(tools) if tools else "[]"]
    if part:
        parts.append(encode_basestring(part))
    content = f"[{','.join(parts)}]"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def _message(message: Message) -> str:
    if message.plain:  # what the encoder would say, in a third of its time
        return f'{{"content":{encode_basestring(message.content)},"role":{encode_basestring(message.role)}}}'
    return _encode(message.as_dict())


def content_of(name: str) -> str:
    """Return an id without the number of its occurrence: the same for all examples with the same content."""
    return name.partition("-")[0]


def is_repeated(name: str) -> bool:
    """Return whether an example with this id has the same content as an earlier one."""
    return "-" in name


class Occurrences:
    """Counts how often each content came before; about 18 bytes per distinct example, more for one that comes again."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._again: dict[int, int] = {}

    def name(self, content: int) -> str:
        """The content's hex, with `-1`, `-2`, ... from its second occurrence on."""
        if self._seen.add(content):
            return f"{content:016x}"
        before = self._again.get(content, 1)
        self._again[content] = before + 1
        return f"{content:016x}-{before}"


def prompt_id(prompt: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """16 hex digits of what is asked; white space around a message, and where an input begins, make no other prompt."""
    said = [message.as_dict() | {"content": message.content.strip()} for message in prompt]
    text = json.dumps([said, [dict(tool) for tool in tools]], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
