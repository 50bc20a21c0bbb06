"""Check that a data set did not change while a run was reading it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tithe.data.containers import DataFile
from tithe.data.dataset import Dataset
from tithe.data.in_memory import HeldRows
from tithe.data.locating import absolute_name
from tithe.data.row_sources import CopiedFiles, DataFiles
from tithe.data.writers import files_of
from tithe.errors import DataError

Stamp = tuple[int, int, int] | str  # size, modification time, inode; or a hash


@dataclass
class InputCheck:
    """The state of a data set's files when a run began; if they change, the scores match no version of the data.

    Args:
        dataset: the data set; one on the hub is pinned to its commit and needs no check.
    """

    dataset: Dataset
    stamps: list[Stamp] = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.stamps = self.read_stamps()
        self.digest = self.dataset.digest()

    def describe(self) -> dict[str, Any]:
        """Return the identity of the data set for `run.json`."""
        found: dict[str, Any] = {
            "source": self.dataset.source,
            "format": self.dataset.format,
            "digest": self.digest,
        }
        origin = self.dataset.origin
        if self.dataset.names:
            found["columns"] = dict(self.dataset.names.given)
        if isinstance(origin, DataFile | DataFiles):
            found["path"] = absolute_name(self.dataset.source)
        if isinstance(origin, DataFiles) and origin.passed_over:
            found["passed_over"] = list(origin.passed_over)
        if isinstance(origin, HeldRows) or (isinstance(origin, CopiedFiles) and not origin.lasting):
            found["gone"] = True  # nobody can open it again by its name
        return found

    def read_stamps(self) -> list[Stamp]:
        """Return size, time and inode of every file; the files are hashed again only if these differ.

        Data in memory has no such sign: its records are hashed each time if they can change.
        """
        origin = self.dataset.origin
        if isinstance(origin, HeldRows):
            return [origin.digest()] if origin.mutable else []
        found: list[Stamp] = []
        for file in files_of(self.dataset):
            with suppress(OSError):
                stat = file.path.stat()
                found.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return found

    def check(self) -> None:
        """Stop the run if the data changed.

        Raises:
            DataError: a file has changed or is gone.
        """
        now = self.read_stamps()
        if now == self.stamps:
            return
        if self.dataset.digest() != self.digest:
            raise DataError(
                f"`{self.dataset.source}` has changed since this run began to read it",
                hint="run the same command again: answers about records that stayed the same are kept",
            )
        self.stamps = now  # touched but equal: do not hash again next time
