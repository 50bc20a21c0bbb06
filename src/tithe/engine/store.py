"""Answers on disk: append-only parquet parts, each written whole or not at all.

    <run folder>/answers/<readout>-v<version>/<model, dtype and numerics>/part-000001.parquet

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
import pyarrow as pa
import pyarrow.parquet as pq

from tithe.engine.arrow import numbers, rows, table
from tithe.engine.readouts import Readout
from tithe.errors import OutputError, StoreError
from tithe.records import Answer

FLUSH_SECONDS = 5.0


def answers_name(model_fingerprint: str, dtype: str, numerics: int) -> str:
    """The folder of one model's answers: everything besides the tokens that could change a number."""
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
        self.readout = readout
        self.folder = folder / "answers" / f"{readout.name}-v{readout.version}" / name
        self.keys = np.empty(0, dtype="S16")  # sorted
        self.table: pa.Table = table(readout.schema(), [])
        self.order = np.empty(0, dtype=np.int64)
        self.fresh: dict[bytes, dict[str, Any]] = {}
        self.unwritten: list[dict[str, Any]] = []
        self.began = self.flushed = time.monotonic()
        self.next_part = 1
        self.load()

    def load(self) -> None:
        """Read all parts; leftovers of a killed writer are removed, they were never named as parts."""
        if not self.folder.is_dir():
            return
        for scrap in self.folder.glob("*.tmp"):
            scrap.unlink()
        parts = sorted(path for path in self.folder.glob("part-*.parquet") if path.stem.removeprefix("part-").isdigit())
        tables = [read_part(part, self.readout.schema()) for part in parts]
        if not tables:
            return
        self.next_part = int(parts[-1].stem.removeprefix("part-")) + 1
        self.table = pa.concat_tables(tables).combine_chunks()
        keys = np.array(self.table["key"].to_pylist(), dtype="S16")
        self.keys, first = np.unique(keys, return_index=True)
        self.order = first

    def __len__(self) -> int:
        return len(self.keys) + len(self.fresh)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The answers there are, by key."""
        found = {key: self.readout.answer(self.fresh[key]) for key in keys if key in self.fresh}
        if len(self.keys) == 0 or not keys:
            return found
        wanted = np.array(keys, dtype="S16")
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        hits = np.flatnonzero(self.keys[at] == wanted)
        stored = self.table.take(numbers(self.order[at[hits]], pa.int64()))
        for i, row in zip(hits.tolist(), rows(stored), strict=True):
            found[keys[i]] = self.readout.answer(row)
        return found

    def put(self, answered: Iterable[tuple[bytes, Mapping[str, Any]]]) -> None:
        """Take answers; they reach the disk within seconds."""
        for key, row in answered:
            if key not in self.fresh:
                self.fresh[key] = {"key": key, **row}
                self.unwritten.append(self.fresh[key])
        now = time.monotonic()
        # Long runs write larger parts, so that the folder stays small: at most 1 % of the time so far is at risk.
        if now - self.flushed > max(FLUSH_SECONDS, 0.01 * (now - self.began)):
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk as one new part."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        path = self.folder / f"part-{self.next_part:06d}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_part(path, table(self.readout.schema(), self.unwritten))
        except OSError as error:
            raise OutputError(
                f"cannot write answers to `{self.folder}`: {error.strerror or error}",
                hint="what was written before stays; make room and run the same command again",
            ) from error
        self.next_part += 1
        self.unwritten = []


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    hint = "delete that file: its answers are computed again"
    try:
        with pq.ParquetFile(path) as file:  # not `read_table`: that reads `a=b` in a folder's name as a column
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"`{path}` is damaged or not ours: {str(error).splitlines()[0]}", hint=hint) from error
    if not table.schema.equals(schema):
        raise StoreError(f"`{path}` is not ours: it holds {', '.join(table.schema.names)}", hint=hint)
    return table


def write_part(path: Path, table: pa.Table) -> None:
    """To a temporary name, to the disk, and only then to its own name."""
    import os

    scrap = path.with_suffix(".tmp")
    try:
        with scrap.open("wb") as stream:
            pq.write_table(table, stream, compression="zstd")
            stream.flush()
            os.fsync(stream.fileno())
        scrap.replace(path)
    finally:
        scrap.unlink(missing_ok=True)
