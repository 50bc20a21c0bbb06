"""Vectors on disk: append-only parquet parts, each written whole or not at all, as answers are.

    <run folder>/embeddings/<encoder key>/part-000001-9f3a2c1d.parquet

A row's key is a hash of the exact text, the folder's name one of everything else that a vector depends on: stale
vectors are not found.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tithe.data.checksum import StoredPart, list_parts
from tithe.data.outfile import atomic
from tithe.engine.store.parts import SUFFIX, read_table, write_table
from tithe.engine.store.store import FLUSH_SECONDS
from tithe.errors import OutputError, StoreError
from tithe.neighbours.encoder import TextEncoder, Vectors

PART = 64 << 20  # bytes of vectors that are held back, at most
KEY = 16  # bytes
Keys: TypeAlias = npt.NDArray[Any]  # S16: a padded NUL at the end of a key is no difference


def text_keys(texts: Iterable[str]) -> list[bytes]:
    """Names of exactly these texts."""
    return [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest() for text in texts]


def schema(dim: int) -> pa.Schema:
    fields = [("key", pa.binary(KEY)), ("vector", pa.list_(pa.float32(), dim)), ("cut", pa.int32())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


class VectorStore:
    """The vectors of one encoder in one run folder.

    Args:
        folder: the run folder; None keeps vectors in memory alone.
        encoder: whose vectors.
    """

    def __init__(self, folder: Path | None, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.folder = None if folder is None else folder / "embeddings" / encoder.key
        self.fresh: list[pa.Table] = []
        self.held = 0
        self.dim: int | None = None
        self.parts: list[StoredPart] = []
        self.keys = np.empty(0, dtype=f"S{KEY}")
        self.began = self.flushed = time.monotonic()
        if self.folder is not None and self.folder.is_dir():
            for scrap in self.folder.glob("*.tmp"):  # of a killed writer: never named as parts
                scrap.unlink()
            self.parts = list_parts(self.folder, SUFFIX)
            self.keys = np.concatenate([self.keys, *(as_keys(self.read(part, ["key"])["key"]) for part in self.parts)])

    def has(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        return np.isin(np.array(keys, dtype=f"S{KEY}"), self.keys)

    def put(self, keys: Sequence[bytes], vectors: Vectors, cut: Sequence[int]) -> None:
        """Take vectors; they reach the disk within seconds."""
        dim = vectors.shape[1]
        if self.dim is None:
            self.dim = dim
        assert dim == self.dim, f"encoder `{self.encoder.name}` gives {dim} numbers after {self.dim}"
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), dim)
        arrays = [pa.array(keys, pa.binary(KEY)), column, pa.array(cut, pa.int32())]
        self.fresh.append(pa.Table.from_arrays(arrays, schema=schema(dim)))
        self.held += vectors.nbytes
        now = time.monotonic()
        # Long runs write larger parts, so that the folder stays small: at most 1 % of the time so far is at risk.
        if now - self.flushed > max(FLUSH_SECONDS, 0.01 * (now - self.began)) or self.held > PART:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk as one new part."""
        self.flushed, self.held = time.monotonic(), 0
        if self.folder is None or not self.fresh:
            return
        number = self.parts[-1].number + 1 if self.parts else 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic(self.folder / "encoder.json", overwrite=True) as stream:  # for people
                stream.write(json.dumps(self.encoder.describe(), indent=2, ensure_ascii=False).encode() + b"\n")
            part = write_table(self.folder, number, pa.concat_tables(self.fresh))
        except OSError as error:
            raise OutputError(
                f"cannot write vectors to `{self.folder}`: {error.strerror or error}",
                hint="what was written before stays; make room and run the same command again",
            ) from error
        self.parts.append(part)
        self.fresh = []

    def read(self, part: StoredPart, columns: Sequence[str]) -> pa.Table:
        """Some columns of a part.

        Raises:
            StoreError: it is damaged, or not of this encoder.
        """
        hint = "delete that file: its vectors are computed again"
        table = read_table(part, hint)
        kind = table.schema
        width = getattr(kind.field("vector").type, "list_size", 0) if "vector" in kind.names else 0
        if not kind.equals(schema(width)) or self.dim not in (None, width):
            raise StoreError(f"`{part.path}` is not ours: it holds {', '.join(map(str, kind))}", hint=hint)
        self.dim = width
        return table.select(list(columns))

    def tables(self) -> Iterator[pa.Table]:
        """All there is, one part in memory at a time."""
        for part in self.parts:
            yield self.read(part, schema(1).names)
        while self.fresh:
            yield self.fresh.pop()

    def fill(self, keys: Sequence[bytes]) -> tuple[Vectors, npt.NDArray[np.int32]]:
        """The vectors of texts, (texts, dim), and how many tokens each had too many; zeros for unknown keys.

        To be asked once, at the end: what was not written is given away.
        """
        wanted = np.array(keys, dtype=f"S{KEY}")
        order = np.argsort(wanted, kind="stable")
        ranked = wanted[order]
        vectors = np.zeros((len(keys), self.dim or 1), dtype=np.float32)
        cut = np.zeros(len(keys), dtype=np.int32)
        for table in self.tables():
            there = as_keys(table["key"])
            first, last = (np.searchsorted(ranked, there, side=side) for side in ("left", "right"))
            source = np.repeat(np.arange(len(there)), last - first)
            offset = np.arange(len(source)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
            places = order[np.repeat(first, last - first) + offset]
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors[places] = flat.reshape(len(there), -1)[source]
            cut[places] = table["cut"].to_numpy()[source]
        return vectors, cut


def as_keys(column: Any) -> Keys:
    return np.array(column.to_pylist(), dtype=f"S{KEY}")
