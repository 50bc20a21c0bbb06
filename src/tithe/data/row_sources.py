"""What a data set's rows come from: files one after the other, or a copy of a stream or of a remote file."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tithe.data.containers import DataFile, Row
from tithe.errors import DataError


class RowSource(Protocol):
    """Anything that yields rows, as often as it is asked."""

    def rows(self) -> Iterator[Row]: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class DataFiles:
    """Several files, read one after the other: those of a folder, those that a pattern matches, or those named.

    Args:
        files: the data files.
        passed_over: descriptions of what else was there.
    """

    files: tuple[DataFile, ...]
    passed_over: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        for file in self.files:
            yield from file.rows()

    def digest(self) -> str:
        """Return a hash of all names and contents."""
        state = hashlib.blake2b(digest_size=16)
        for file in self.files:
            state.update(f"{file.path.name}\n{file.digest()}\n".encode("utf-8", "surrogateescape"))
        return state.hexdigest()


class CopyPlace:
    """A new temporary folder for copies; removed with this object, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tithe-data-"))
        self.end = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class CopiedFiles:
    """Files that were copied to this machine before they are read, as a pipe or a server gives its bytes once.

    Messages name them as the user did, not by the place of the copy.

    Args:
        copies: the files on disk.
        names: where each of them came from.
        place: holds the copies, and removes them when nobody needs them.
        lasting: whether the same name gives the data again later; a pipe's does not.
    """

    copies: DataFile | DataFiles
    names: tuple[str, ...]
    place: CopyPlace = field(repr=False, compare=False)
    lasting: bool = True

    @property
    def files(self) -> tuple[DataFile, ...]:
        return self.copies.files if isinstance(self.copies, DataFiles) else (self.copies,)

    def rows(self) -> Iterator[Row]:
        for file, name in zip(self.files, self.names, strict=True):
            with named_as_given(file.path, name):
                for row in file.rows():
                    yield row._replace(where=row.where.replace(str(file.path), name, 1))

    def digest(self) -> str:
        """Return the hash of the bytes, which is that of the same file on disk."""
        return self.copies.digest()


@contextmanager
def named_as_given(copy: Path, name: str) -> Iterator[None]:
    """Let errors about a copy name what was copied."""
    try:
        yield
    except DataError as error:
        raise type(error)(str(error).replace(str(copy), name), hint=error.hint) from error
