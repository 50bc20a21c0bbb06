"""Ids of examples, computed from their content and not their position, and a compact set of the hashes seen."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from tithe.records import Message


class HashSet:
    """A set of 64-bit hashes that only grows, at 8 bytes a slot.

    An open-addressing table with linear probing, at most two thirds full. The highest bits of a number give its slot,
    so numbers must be spread evenly, as hashes are.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 64))
        self._shift = 64 - 6  # a number shifted by this is its slot
        self._count = 0  # numbers in the table
        self._zero = False  # whether 0 is in the set; in the table 0 marks a free slot

    def add(self, number: int) -> bool:
        """Add a number and return whether it is new."""
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
        """The size of the table in bytes."""
        return len(self._table) * self._table.itemsize

    def _grow(self) -> None:
        """Double the table, placing all numbers at once with numpy instead of one by one."""
        old = np.frombuffer(self._table, dtype=np.uint64)
        numbers = np.sort(old[old != 0])
        self._shift -= 1
        # Slots ascend with the numbers. In sorted order each number takes its own slot or the one after its
        # predecessor, whichever is later: place[i] = max over j <= i of home[j] + (i - j).
        home, i = (numbers >> np.uint64(self._shift)).astype(np.int64), np.arange(len(numbers))
        place = np.maximum.accumulate(home - i) + i
        table = np.zeros(2 * len(old), dtype=np.uint64)
        inside = place < len(table)
        table[place[inside]] = numbers[inside]
        self._table = array("Q", table.tobytes())
        self._count -= int((~inside).sum())
        for number in numbers[~inside].tolist():  # pushed past the end: wrap around to the first slots
            self.add(number)


def first_64_bits(key: bytes) -> int:
    """Return the first 64 bits of a hash as a number."""
    return int.from_bytes(key[:8], "little")


_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode


def content_hash(
    prompt: Sequence[Message], response: Message, tools: Sequence[Mapping[str, Any]], part: str | None = None
) -> int:
    """Return a 64-bit hash of the canonical JSON of an example.

    Args:
        prompt: messages before the response.
        response: the message to be scored.
        tools: function schemas.
        part: the separate `input` of a record; some templates render it differently from text in the instruction.

    Raises:
        UnicodeEncodeError: a text contains a lone surrogate.
    """
    parts = [f"[{','.join(map(_message, prompt))}]", _message(response), _encode(tools) if tools else "[]"]
    if part:
        parts.append(encode_basestring(part))
    content = f"[{','.join(parts)}]"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def _message(message: Message) -> str:
    if message.plain:  # the encoder's output, in a third of its time
        return f'{{"content":{encode_basestring(message.content)},"role":{encode_basestring(message.role)}}}'
    return _encode(message.as_dict())


def strip_occurrence(name: str) -> str:
    """Return an id without its occurrence number; examples with equal content share it."""
    return name.partition("-")[0]


def is_repeated(name: str) -> bool:
    """Tell whether an example with this id repeats the content of an earlier one."""
    return "-" in name


class Occurrences:
    """A counter of how often each content was seen; about 18 bytes per distinct example, more for repeated ones."""

    def __init__(self) -> None:
        self._seen = HashSet()
        self._again: dict[int, int] = {}

    def name(self, content: int) -> str:
        """Return the content's id in hex, with `-1`, `-2`, ... from its second occurrence on."""
        if self._seen.add(content):
            return f"{content:016x}"
        before = self._again.get(content, 1)
        self._again[content] = before + 1
        return f"{content:016x}-{before}"


def prompt_id(prompt: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return 16 hex digits that identify a prompt, ignoring outer white space and a separate `input`."""
    said = [message.as_dict() | {"content": message.content.strip()} for message in prompt]
    text = json.dumps([said, [dict(tool) for tool in tools]], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
