"""Checksums of stored files: in the name of a part of a store, and inside small JSON files.

    part-000001-9f3a2c1d.parquet

A part's name holds the CRC-32 of its folder's name and of its bytes. Damage to the bytes thus cannot change the
expected checksum, nor make the part look like one of an earlier version, which has none. The folder's name is included
because it identifies the model: a part copied from another model's folder fails the check.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tithe.errors import StoreError
from tithe.foreign import demand_regular

NAME = re.compile(r"part-(\d+)(?:-([0-9a-f]{8}))?")
CHUNK = 1 << 20  # bytes read at once
KEY, MARK = "checksum", "crc32:"  # field name and value prefix in a JSON file


@dataclass(frozen=True, order=True)
class StoredPart:
    """One file of a store.

    Args:
        number: its position among the parts.
        path: the file.
        checksum: as given in its name; None for parts of earlier versions.
    """

    number: int
    path: Path
    checksum: str | None = None

    def check(self, found: str, hint: str) -> None:
        """Compare the checksum of the bytes that were read with the one in the name.

        Raises:
            StoreError: the bytes differ from those that were written.
        """
        if self.checksum not in (None, found):
            raise StoreError(f"`{self.path}` is damaged: its bytes are not those that were written here", hint=hint)

    def read(self, hint: str) -> bytes:
        """Read all bytes and verify them.

        Raises:
            StoreError: the bytes differ from those that were written, or the file cannot be read.
        """
        try:
            demand_regular(self.path, StoreError, hint)
            data = self.path.read_bytes()
        except OSError as error:
            raise StoreError(f"`{self.path}` cannot be read: {error.strerror or error}", hint=hint) from error
        self.check(checksum(data, folder_checksum(self.path)), hint)
        return data


def checksum(data: bytes, before: int = 0) -> str:
    """Return the CRC-32 of some bytes as 8 hex digits, continuing from the CRC `before`."""
    return f"{zlib.crc32(data, before):08x}"


def folder_checksum(path: Path) -> int:
    """Return the CRC-32 of the name of a file's folder."""
    return zlib.crc32(os.fsencode(path.absolute().parent.name))


def file_checksum(path: Path) -> str:
    """Return the checksum of a file's folder name and bytes."""
    demand_regular(path, StoreError)
    value = folder_checksum(path)
    with path.open("rb") as stream:
        while data := stream.read(CHUNK):
            value = zlib.crc32(data, value)
    return f"{value:08x}"


def list_parts(folder: Path, suffix: str) -> list[StoredPart]:
    """Return the parts in a folder in order; other files are ignored."""
    found = []
    for path in folder.glob(f"part-*{suffix}"):
        if match := NAME.fullmatch(path.name.removesuffix(suffix)):
            found.append(StoredPart(int(match[1]), path, match[2]))
    return sorted(found, key=lambda part: (part.number, part.path.name))


def write_part(folder: Path, number: int, suffix: str, fill: Callable[[BinaryIO], None]) -> StoredPart:
    """Write a part under a temporary name, sync it, and only then give it its final name.

    Args:
        folder: created if it is missing.
        number: of the part.
        suffix: of its name.
        fill: writes the content.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scrap = folder / f"part-{number:06d}.tmp"
    try:
        with scrap.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # Read back what was written, so that the name vouches for the bytes on disk.
        found = file_checksum(scrap)
        path = folder / f"part-{number:06d}-{found}{suffix}"
        scrap.replace(path)
    finally:
        scrap.unlink(missing_ok=True)
    return StoredPart(number, path, found)


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON file with their checksum added."""
    return {**values, KEY: _values_checksum(values)}


def unseal(found: Mapping[str, Any], *, demanded: bool = False) -> dict[str, Any]:
    """Verify the values against their checksum and return them without it.

    Args:
        found: content of the file.
        demanded: whether a missing checksum is an error; files of earlier versions have none.

    Raises:
        ValueError: the values differ from those that were written.
    """
    values = {name: value for name, value in found.items() if name != KEY}
    # Damage to the field's name leaves a value with the prefix under another name.
    marked = any(isinstance(value, str) and value.startswith(MARK) for value in values.values())
    if marked or (KEY in found and found[KEY] != _values_checksum(values)):
        raise ValueError("its values are not those that were written")
    if demanded and KEY not in found:
        raise ValueError("it has no checksum")
    return values


def _values_checksum(values: Mapping[str, Any]) -> str:
    return MARK + checksum(json.dumps(values, sort_keys=True, default=str).encode())
