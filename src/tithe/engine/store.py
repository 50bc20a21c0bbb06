"""Answers on disk: append-only parquet parts, each written whole or not at all.

    <run folder>/answers/<readout>-v<version>/<model, dtype and numerics>/part-000001.parquet

A row's key is a hash of the exact token ids and the response span, so another template, tokenizer, example or length
limit asks for another key, and another model, dtype or readout looks in another folder: stale answers are not found.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tithe.engine import flat_parquet
from tithe.engine.readouts import Readout
from tithe.errors import OutputError, StoreError
from tithe.records import Answer

if TYPE_CHECKING:
    import pyarrow as pa

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
        self.table: pa.Table | None = None
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
        if not parts:
            return
        import pyarrow as pa  # not before: it takes its memory beside the passes under way

        schema = self.readout.schema()
        tables = [read_part(path, schema) for path in parts]
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
        if self.table is None or not keys:
            return found
        import pyarrow as pa

        from tithe.engine.arrow import numbers, rows

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
            self.write(path, self.unwritten)
        except OSError as error:
            raise OutputError(
                f"cannot write answers to `{self.folder}`: {error.strerror or error}",
                hint="what was written before stays; make room and run the same command again",
            ) from error
        self.next_part += 1
        self.unwritten = []

    def write(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Plain numbers without pyarrow, all else with it; both are parquet of the same schema."""
        fields = self.readout.fields
        if flat_parquet.can_write(fields):
            with new_part(path) as stream:
                flat_parquet.write(stream, fields, rows)
            return
        from tithe.engine.arrow import table

        write_part(path, table(self.readout.schema(), rows))


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    """A table as a part."""
    import pyarrow.parquet as pq

    with new_part(path) as stream:
        pq.write_table(table, stream, compression="zstd")


@contextmanager
def new_part(path: Path) -> Iterator[BinaryIO]:
    """To a temporary name, to the disk, and only then to its own name."""
    scrap = path.with_suffix(".tmp")
    try:
        with scrap.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        scrap.replace(path)
    finally:
        scrap.unlink(missing_ok=True)
