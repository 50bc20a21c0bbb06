"""Checksums of what is stored and read again: in the name of a part, and in small JSON files.

    part-000001-9f3a2c1d.parquet

A part's name says the CRC-32 of its folder's name and of its bytes, so damage to the bytes cannot change what they have
to be, nor make a part with a checksum look like one of earlier versions, which have none. The folder's name says whose
answers these are: a part that was copied here from another model's folder is not one of this folder's.
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
KEY, MARK = "checksum", "crc32:"  # of a JSON file


@dataclass(frozen=True, order=True)
class Part:
    """A part of a store.

    Args:
        number: its place among the parts.
        path: the file.
        checksum: of its bytes, as its name says; None for parts of earlier versions.
    """

    number: int
    path: Path
    checksum: str | None = None

    def check(self, found: str, hint: str) -> None:
        """Compare the checksum of the bytes that were read.

        Raises:
            StoreError: they are not those that were written.
        """
        if self.checksum not in (None, found):
            raise StoreError(f"`{self.path}` is damaged: its bytes are not those that were written here", hint=hint)

    def read(self, hint: str) -> bytes:
        """Return all bytes, verified.

        Raises:
            StoreError: the bytes are not those that were written, or the file cannot be read.
        """
        try:
            demand_regular(self.path, StoreError, hint)
            data = self.path.read_bytes()
        except OSError as error:
            raise StoreError(f"`{self.path}` cannot be read: {error.strerror or error}", hint=hint) from error
        self.check(checksum(data, folder_sum(self.path)), hint)
        return data


def checksum(data: bytes, before: int = 0) -> str:
    """Return 8 hex digits of some bytes, and of what stands before them."""
    return f"{zlib.crc32(data, before):08x}"


def folder_sum(path: Path) -> int:
    """Return the checksum of the name of a file's folder."""
    return zlib.crc32(os.fsencode(path.absolute().parent.name))


def file_checksum(path: Path) -> str:
    """Return the checksum of the folder's name and of a file's bytes."""
    demand_regular(path, StoreError)
    value = folder_sum(path)
    with path.open("rb") as stream:
        while data := stream.read(CHUNK):
            value = zlib.crc32(data, value)
    return f"{value:08x}"


def parts_in(folder: Path, suffix: str) -> list[Part]:
    """Return the parts in a folder, in their order; other files are left alone."""
    found = []
    for path in folder.glob(f"part-*{suffix}"):
        if match := NAME.fullmatch(path.name.removesuffix(suffix)):
            found.append(Part(int(match[1]), path, match[2]))
    return sorted(found, key=lambda part: (part.number, part.path.name))


def write_part(folder: Path, number: int, suffix: str, fill: Callable[[BinaryIO], None]) -> Part:
    """Write a part under a temporary name, to the disk, and only then give it its own name.

    Args:
        folder: made where it is missing.
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
        found = file_checksum(scrap)
        path = folder / f"part-{number:06d}-{found}{suffix}"
        scrap.replace(path)
    finally:
        scrap.unlink(missing_ok=True)
    return Part(number, path, found)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of a JSON file with their checksum."""
    return {**values, KEY: seal_of(values)}


def unsealed(found: Mapping[str, Any], *, demanded: bool = False) -> dict[str, Any]:
    """Return the values without their checksum.

    Args:
        found: what the file holds.
        demanded: whether there has to be one; files of earlier versions have none.

    Raises:
        ValueError: they are not those that were written.
    """
    values = {name: value for name, value in found.items() if name != KEY}
    marked = any(isinstance(value, str) and value.startswith(MARK) for value in values.values())
    if marked or (KEY in found and found[KEY] != seal_of(values)):  # a damaged name leaves its value behind
        raise ValueError("its values are not those that were written")
    if demanded and KEY not in found:
        raise ValueError("it has no checksum")
    return values


def seal_of(values: Mapping[str, Any]) -> str:
    return MARK + checksum(json.dumps(values, sort_keys=True, default=str).encode())
