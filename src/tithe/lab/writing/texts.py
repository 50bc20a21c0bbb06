"""Texts that models wrote, on disk: append-only JSON lines, each part whole or not there.

    <run folder>/generated/<model and settings>/part-000001-9f3a2c1d.jsonl

A line's key is a hash of what was asked, and the folder's name of who was asked and how: another model, dtype,
temperature or length looks in another folder, another prompt or template for another key.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tithe.data.checksum import StoredPart, list_parts, write_part
from tithe.data.outfile import writing
from tithe.errors import StoreError

FOLDER, SUFFIX = "generated", ".jsonl"
FLUSH_SECONDS = 3.0
FIELDS = {"key": (str,), "text": (str,), "tokens": (int, type(None)), "finished": (bool,)}


def store_name(name: str, who: Mapping[str, Any]) -> str:
    """Folder of one model under one set of settings: readable, and never another's."""
    text = json.dumps(who, sort_keys=True, default=str)
    readable = re.sub(r"[^\w.-]+", "-", Path(name).name)[:40].strip("-.") or "model"
    return f"{readable}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def key_of(*parts: bytes | str) -> str:
    """32 hex digits that name exactly these parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


class TextStore:
    """What one model wrote in one run folder.

    Args:
        folder: the run folder.
        name: `store_name` of the model and settings.

    Raises:
        StoreError: a part is damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / FOLDER / name
        self.known: dict[str, dict[str, Any]] = {}
        self.unwritten: list[dict[str, Any]] = []
        self.flushed, self.next_part = time.monotonic(), 1
        for part in list_parts(self.folder, SUFFIX):
            for line in read_part(part):
                self.known[line.pop("key")] = line
            self.next_part = part.number + 1

    def __len__(self) -> int:
        """Count the texts that are on disk."""
        return len(self.known) - len(self.unwritten)

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.known[key]

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Take a text; it reaches the disk with the next flush: what is flushed together is there together."""
        self.known[key] = dict(value)
        self.unwritten.append({"key": key, **value})

    def flush_now_and_then(self, seconds: float | None = None) -> None:
        """Flush, if the last time was so long ago, seconds by default: for texts that come one by one."""
        if time.monotonic() - self.flushed >= (FLUSH_SECONDS if seconds is None else seconds):
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk as one new part."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        lines = [json.dumps(value).encode() + b"\n" for value in self.unwritten]
        with writing(self.folder):
            write_part(self.folder, self.next_part, SUFFIX, lambda stream: stream.writelines(lines))
        self.next_part += 1
        self.unwritten = []


def read_part(part: StoredPart) -> list[dict[str, Any]]:
    """The lines of a part.

    Raises:
        StoreError: it is not what we wrote.
    """
    hint = "delete that file: its texts are generated again"
    data = part.read(hint)
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            if line.keys() != FIELDS.keys() or not all(type(line[name]) in types for name, types in FIELDS.items()):
                raise ValueError("other fields than ours")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StoreError(f"`{part.path}` is damaged or not ours: {error}", hint=hint) from error
    return lines
