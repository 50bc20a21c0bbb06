"""Answers on disk: append-only parquet parts, each written whole or not at all.

    <run folder>/answers/<readout>-v<version>/<model, dtype and numerics>/part-000001-9f3a2c1d.parquet

A row's key is a hash of the exact token ids and the response span, so another template, tokenizer, example or length
limit gives another key, and another model, dtype or readout has another folder: stale answers are never found.
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
MOST_UNWRITTEN = 8 << 20  # bytes of answers in memory before they are written
ROW_BYTES = 500  # rough size of an answer in memory, without its arrays


def answers_name(model_fingerprint: str, dtype: str, numerics: int) -> str:
    """Return the folder name of one model's answers, from everything but the tokens that could change a number."""
    text = f"{model_fingerprint}|{dtype}|{numerics}"
    return f"{dtype}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


class Store:
    """The answers of one readout of one model in one run folder.

    Args:
        folder: the run folder.
        readout: the readout.
        name: `answers_name` of the model.
    """

    def __init__(self, folder: Path, readout: Readout, name: str) -> None:
        self.readout, self.root = readout, folder
        self.folder = folder / "answers" / f"{readout.name}-v{readout.version}" / name
        self.parts = Parts(readout)
        self.index = KeyIndex()
        self.unwritten: dict[bytes, Mapping[str, Any]] = {}
        self.began = self.flushed = time.monotonic()
        self.size = 0  # approximate bytes of unwritten answers
        self.next_part = 1
        self.load()

    def load(self) -> None:
        """Open all parts; remove temporary files of a killed writer, which never became parts."""
        if not self.folder.is_dir():
            return
        for scrap in self.folder.glob("*.tmp"):
            scrap.unlink()
        for part in list_parts(self.folder, SUFFIX):
            self.index.extend(self.parts.open(part))
            self.next_part = part.number + 1

    def borrow(self, folder: Path) -> bool:
        """Add the answers that another run folder has now, and return whether it has any."""
        parts = list_parts(folder / self.folder.relative_to(self.root), SUFFIX)
        for part in parts:
            self.index.extend(self.parts.open(part))
        return bool(parts)

    def __len__(self) -> int:
        return len(self.index) + len(self.unwritten)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the known answers among these keys."""
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
        """Add answers; they are written to disk within seconds, and then leave memory."""
        for key, row in answered:
            if key not in self.unwritten:
                self.unwritten[key] = row
                self.size += ROW_BYTES
                for value in row.values():
                    self.size += getattr(value, "nbytes", 0)
        now = time.monotonic()
        # The longer a run, the larger its parts, so that there are few: a crash loses at most 1 % of the run's time.
        if self.size > MOST_UNWRITTEN or now - self.flushed > max(FLUSH_SECONDS, 0.01 * (now - self.began)):
            self.flush()

    def flush(self) -> None:
        """Write the unwritten answers as one new part."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        rows = [{"key": key, **row} for key, row in self.unwritten.items()]
        try:
            part = write_rows(self.folder, self.next_part, self.readout, rows)
        except OSError as error:
            raise OutputError(
                f"cannot write answers to `{self.folder}`: {error.strerror or error}",
                hint="what was written before is kept; free some space and run the same command again",
            ) from error
        # Only now that the part is on disk are its rows indexed and dropped from memory.
        self.parts.add(part, len(self.unwritten))
        self.index.extend(as_keys(list(self.unwritten)))
        self.next_part += 1
        self.unwritten, self.size = {}, 0
