"""Answers on disk: append-only parquet parts, each written whole or not at all.

    <run folder>/answers/<readout>-v<version>/<model, dtype and numerics>/part-000001-9f3a2c1d.parquet

A row's key is a hash of the exact token ids and the response span, so another template, tokenizer, example or length
limit asks for another key, and another model, dtype or readout looks in another folder: stale answers are not found.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tithe.data.checksum import list_parts
from tithe.engine.readouts.base import Readout
from tithe.engine.store.parts import SUFFIX, KeyIndex, Parts, as_keys, write_rows
from tithe.errors import OutputError
from tithe.records import Answer

FLUSH_SECONDS = 5.0
MOST_UNWRITTEN = 8 << 20  # bytes
ROW_BYTES = 500  # of an answer in memory, without its arrays


def answers_name(model_fingerprint: str, dtype: str, numerics: int) -> str:
    """Name the folder of one model's answers: everything besides the tokens that could change a number."""
    text = f"{model_fingerprint}|{dtype}|{numerics}"
    return f"{dtype}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


class Store:
    """The answers of one readout of one model in one run folder.

    Args:
        folder: the run folder.
        readout: whose answers.
        name: `answers_name` of the model.
    """

    def __init__(self, folder: Path, readout: Readout, name: str) -> None:
        self.readout, self.root = readout, folder
        self.folder = folder / "answers" / f"{readout.name}-v{readout.version}" / name
        self.parts = Parts(readout)
        self.index = KeyIndex()
        self.unwritten: dict[bytes, Mapping[str, Any]] = {}
        self.began = self.flushed = time.monotonic()
        self.size = 0  # bytes of what is unwritten, about
        self.next_part = 1
        self.load()

    def load(self) -> None:
        """Look at all parts; leftovers of a killed writer are removed, they were never named as parts."""
        if not self.folder.is_dir():
            return
        for scrap in self.folder.glob("*.tmp"):
            scrap.unlink()
        for part in list_parts(self.folder, SUFFIX):
            self.index.extend(self.parts.open(part))
            self.next_part = part.number + 1

    def borrow(self, folder: Path) -> bool:
        """Read the answers of another run folder too, as they are now. Whether it has any."""
        parts = list_parts(folder / self.folder.relative_to(self.root), SUFFIX)
        for part in parts:
            self.index.extend(self.parts.open(part))
        return bool(parts)

    def __len__(self) -> int:
        return len(self.index) + len(self.unwritten)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the answers there are, by key."""
        answer = self.readout.answer
        found = {key: answer(self.unwritten[key]) for key in keys if key in self.unwritten}
        if not len(self.index) or not keys:
            return found
        places = self.index.find(as_keys(keys))
        hits = np.flatnonzero(places >= 0)
        for i, row in self.parts.rows(places[hits]):
            found[keys[hits[i]]] = answer(row)
        return found

    def put(self, answered: Iterable[tuple[bytes, Mapping[str, Any]]]) -> None:
        """Take answers; they reach the disk within seconds, and leave memory then."""
        for key, row in answered:
            if key not in self.unwritten:
                self.unwritten[key] = row
                self.size += ROW_BYTES
                for value in row.values():
                    self.size += getattr(value, "nbytes", 0)
        now = time.monotonic()
        # Long runs write larger parts, so that the folder stays small: at most 1 % of the time so far is at risk.
        if self.size > MOST_UNWRITTEN or now - self.flushed > max(FLUSH_SECONDS, 0.01 * (now - self.began)):
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk as one new part."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        rows = [{"key": key, **row} for key, row in self.unwritten.items()]
        try:
            part = write_rows(self.folder, self.next_part, self.readout, rows)
        except OSError as error:
            raise OutputError(
                f"cannot write answers to `{self.folder}`: {error.strerror or error}",
                hint="what was written before stays; make room and run the same command again",
            ) from error
        self.parts.add(part, len(self.unwritten))
        self.index.extend(as_keys(list(self.unwritten)))
        self.next_part += 1
        self.unwritten, self.size = {}, 0
