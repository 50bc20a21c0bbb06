"""Names of examples that depend on what they say, not on where they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from tithe.data.seen import Seen
from tithe.records import Message

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
