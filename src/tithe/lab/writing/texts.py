"""Store texts that models wrote in files of JSON lines, which are written whole and never changed.

    <run folder>/generated/<model and settings>/part-000001-9f3a2c1d.jsonl

The folder's name has a hash of the model and how it writes, a line's key is a hash of the prompt: another model, dtype,
temperature or length uses another folder, another prompt or template another key.
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
    """Return the name of the folder for a model and its settings: readable, and unique by a hash."""
    text = json.dumps(who, sort_keys=True, default=str)
    readable = re.sub(r"[^\w.-]+", "-", Path(name).name)[:40].strip("-.") or "model"
    return f"{readable}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def key_of(*parts: bytes | str) -> str:
    """Return a hash of the parts, as 32 hex digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        # With its length before it, no part can be taken for the end of the one before.
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


class TextStore:
    """The texts of one model in one run folder.

    Args:
        folder: the run folder.
        name: result of `store_name`.

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
        """Add a text; the next flush writes it to disk, together with all others added since the last one."""
        self.known[key] = dict(value)
        self.unwritten.append({"key": key, **value})

    def flush_now_and_then(self, seconds: float | None = None) -> None:
        """Flush if the last flush was so many seconds ago, 3 by default; for texts that come one by one."""
        if time.monotonic() - self.flushed >= (FLUSH_SECONDS if seconds is None else seconds):
            self.flush()

    def flush(self) -> None:
        """Write all texts that are not on disk yet as one new part."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        lines = [json.dumps(value).encode() + b"\n" for value in self.unwritten]
        with writing(self.folder):
            write_part(self.folder, self.next_part, SUFFIX, lambda stream: stream.writelines(lines))
        self.next_part += 1
        self.unwritten = []


def read_part(part: StoredPart) -> list[dict[str, Any]]:
    """Read the lines of a part.

    Raises:
        StoreError: it is damaged, or tithe did not write it.
    """
    hint = "delete that file: its texts are generated again"
    data = part.read(hint)
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            if line.keys() != FIELDS.keys() or not all(type(line[name]) in types for name, types in FIELDS.items()):
                raise ValueError("unknown or missing fields")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StoreError(f"`{part.path}` is damaged or was not written by tithe: {error}", hint=hint) from error
    return lines
