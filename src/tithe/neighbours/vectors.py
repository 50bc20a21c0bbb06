"""Embed examples: encode each distinct text once, and store its vector in the run folder for later runs.

    <run folder>/embeddings/<encoder key>/part-000001-9f3a2c1d.parquet

Parts are append-only, and each is written whole or not at all. A row's key is a hash of the exact text; the folder is
named by a hash of everything else that a vector depends on. So a stale vector is never found.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tithe.data.checksum import StoredPart, list_parts
from tithe.data.outfile import atomic
from tithe.engine.store.store import FLUSH_SECONDS, SUFFIX, read_table, write_table
from tithe.errors import DataError, ModelError, OutputError, StoreError
from tithe.neighbours.encoder import Encoder, PlacedEncoder, TextEncoder, TextVectors, Vectors
from tithe.records import Example

WINDOW = 4096  # texts that an encoder gets at a time
PART = 64 << 20  # most bytes of vectors held back before a part is written
KEY = 16  # bytes
Keys: TypeAlias = npt.NDArray[Any]  # S16: numpy drops trailing NULs of a key, on both sides of every comparison
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """The vectors of some examples.

    Args:
        vectors: (examples, dim) float32, each of length 1; zeros, with cosine 0 to every vector, where an example has
            no text or its encoder knows nothing about it.
        counts: `texts` (distinct ones), of these `encoded` and `reused`; `cut` (examples whose text was too long),
            `empty` (examples without text), `unknown` (examples with text and without a vector).
    """

    vectors: Vectors
    counts: dict[str, int] = field(default_factory=dict)


def embed(
    examples: Sequence[Example], encoder: Encoder, folder: Path | None = None, progress: Progress | None = None
) -> Embedded:
    """Return the examples' vectors, of length 1 and in order.

    Args:
        examples: of one data set.
        encoder: from `make_encoder`.
        folder: the run folder, where vectors are stored and reused; None stores nothing.
        progress: called with the number of distinct texts done, and of all.

    Raises:
        ModelError: the encoder cannot be loaded, or returns a vector that is not finite.
        DataError: a file of vectors does not fit the data set.
        StoreError: a stored part is damaged.
        OutputError: vectors cannot be written.
    """
    if isinstance(encoder, PlacedEncoder):
        return placed(examples, encoder)
    assert isinstance(encoder, TextEncoder)
    texts = [encoder.text(example) for example in examples]
    distinct: dict[str, Example] = {}  # text -> the first example that has it
    for text, example in zip(texts, examples, strict=True):
        if text.strip():
            distinct.setdefault(text, example)
    keys = dict(zip(distinct, text_keys(distinct), strict=True))
    store = VectorStore(folder, encoder)
    try:
        encoded = complete(store, distinct, keys, progress or (lambda done, total: None))
    finally:
        store.flush()
    vectors, cut = store.fill([keys.get(text, b"") for text in texts])
    empty = sum(text not in distinct for text in texts)
    counts = {"texts": len(distinct), "encoded": encoded, "reused": len(distinct) - encoded}
    counts |= {"cut": int((cut > 0).sum()), "empty": empty, "unknown": int((~vectors.any(axis=1)).sum()) - empty}
    return Embedded(vectors, counts)


def complete(store: VectorStore, texts: Mapping[str, Example], keys: Mapping[str, bytes], progress: Progress) -> int:
    """Encode the texts that are not stored, and return how many there were."""
    order = sorted(
        texts, key=lambda text: (-len(text), keys[text])
    )  # longest first, so that running out of memory shows at once
    there = store.has([keys[text] for text in order])
    reused = done = int(there.sum())
    progress(done, len(order))
    for start in range(0, len(order), WINDOW):
        window, have = order[start : start + WINDOW], there[start : start + WINDOW]
        if have.all():
            continue
        for found in store.encoder.encode(window, have.tolist()):
            demand_finite(found, [texts[window[i]] for i in found.index], store.encoder)
            store.put([keys[window[i]] for i in found.index], unit(found.vectors), found.cut)
            done += len(found.index)
            progress(done, len(order))
    assert done == len(order), f"{done} of {len(order)} texts"
    return done - reused


def placed(examples: Sequence[Example], encoder: PlacedEncoder) -> Embedded:
    raw = encoder.look_up(examples)
    demand_finite(TextVectors(range(len(raw)), raw, []), examples, encoder)
    vectors = unit(raw)
    return Embedded(vectors, {"unknown": int((~vectors.any(axis=1)).sum())})


def demand_finite(found: TextVectors, examples: Sequence[Example], encoder: Encoder) -> None:
    """Refuse NaN and infinity before they are stored, as every cosine with them would be NaN."""
    odd = np.flatnonzero(~np.isfinite(found.vectors).all(axis=1))
    if len(odd) == 0:
        return
    example = examples[int(odd[0])]
    place = f"for example `{example.id}` ({example.where})"
    if isinstance(encoder, PlacedEncoder):
        raise DataError(f"`{encoder.name}` has a vector that is not finite {place}", hint="correct it in that file")
    raise ModelError(
        f"encoder `{encoder.name}` returns a vector that is not finite {place}",
        hint="its weights are damaged, or half precision overflows: use `dtype=fp32`, or another encoder",
    )


def unit(vectors: Vectors) -> Vectors:
    """Scale rows to length 1; zero rows stay zero."""
    wide = vectors.astype(np.float64)  # squares of large fp32 values would overflow
    length = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return np.asarray(np.divide(wide, length, out=np.zeros_like(wide), where=length > 0), dtype=np.float32)


def text_keys(texts: Iterable[str]) -> list[bytes]:
    """Hash each text exactly as it is."""
    return [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest() for text in texts]


def schema(dim: int) -> pa.Schema:
    fields = [("key", pa.binary(KEY)), ("vector", pa.list_(pa.float32(), dim)), ("cut", pa.int32())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


class VectorStore:
    """The vectors of one encoder in one run folder.

    Args:
        folder: the run folder; None keeps vectors only in memory.
        encoder: whose vectors they are.
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
            for scrap in self.folder.glob("*.tmp"):  # left by a killed writer, never named as parts
                scrap.unlink()
            self.parts = list_parts(self.folder, SUFFIX)
            self.keys = np.concatenate([self.keys, *(as_keys(self.read(part, ["key"])["key"]) for part in self.parts)])

    def has(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        return np.isin(np.array(keys, dtype=f"S{KEY}"), self.keys)

    def put(self, keys: Sequence[bytes], vectors: Vectors, cut: Sequence[int]) -> None:
        """Add vectors; they are written within seconds."""
        dim = vectors.shape[1]
        if self.dim is None:
            self.dim = dim
        assert dim == self.dim, f"encoder `{self.encoder.name}` gives {dim} numbers after {self.dim}"
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), dim)
        arrays = [pa.array(keys, pa.binary(KEY)), column, pa.array(cut, pa.int32())]
        self.fresh.append(pa.Table.from_arrays(arrays, schema=schema(dim)))
        self.held += vectors.nbytes
        now = time.monotonic()
        # Long runs write fewer and larger parts; a crash loses at most 1 % of the time so far.
        if now - self.flushed > max(FLUSH_SECONDS, 0.01 * (now - self.began)) or self.held > PART:
            self.flush()

    def flush(self) -> None:
        """Write the vectors that are not yet on disk as a new part."""
        self.flushed, self.held = time.monotonic(), 0
        if self.folder is None or not self.fresh:
            return
        number = self.parts[-1].number + 1 if self.parts else 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic(self.folder / "encoder.json", overwrite=True) as stream:  # for people to read
                stream.write(json.dumps(self.encoder.describe(), indent=2, ensure_ascii=False).encode() + b"\n")
            part = write_table(self.folder, number, pa.concat_tables(self.fresh))
        except OSError as error:
            raise OutputError(
                f"cannot write vectors to `{self.folder}`: {error.strerror or error}",
                hint="vectors written before are kept; free some disk space and run the same command again",
            ) from error
        self.parts.append(part)
        self.fresh = []

    def read(self, part: StoredPart, columns: Sequence[str]) -> pa.Table:
        """Read some columns of a part.

        Raises:
            StoreError: it is damaged, or does not belong to this encoder.
        """
        hint = "delete that file; its vectors are then computed again"
        table = read_table(part, hint)
        kind = table.schema
        width = getattr(kind.field("vector").type, "list_size", 0) if "vector" in kind.names else 0
        if not kind.equals(schema(width)) or self.dim not in (None, width):
            raise StoreError(f"`{part.path}` does not fit this encoder: it has {', '.join(map(str, kind))}", hint=hint)
        self.dim = width
        return table.select(list(columns))

    def tables(self) -> Iterator[pa.Table]:
        """Yield all vectors, one part in memory at a time."""
        for part in self.parts:
            yield self.read(part, schema(1).names)
        while self.fresh:
            yield self.fresh.pop()

    def fill(self, keys: Sequence[bytes]) -> tuple[Vectors, npt.NDArray[np.int32]]:
        """Return the vectors of texts, (texts, dim), and how many tokens were cut from each; zeros for unknown keys.

        Call it once, at the end: it frees the vectors that were never written.
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
