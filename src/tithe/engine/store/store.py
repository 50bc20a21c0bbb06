"""Answers on disk: append-only parquet parts, each written whole or not at all.

    <run folder>/answers/<readout>-v<version>/<model, dtype and numerics>/part-000001-9f3a2c1d.parquet

A row's key is a hash of the exact token ids and the response span, so another template, tokenizer, example or length
limit gives another key, and another model, dtype or readout has another folder: stale answers are never found.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.data.checksum import StoredPart, list_parts, write_part
from tithe.engine.readouts.base import Readout
from tithe.errors import OutputError, StoreError
from tithe.foreign import foreign
from tithe.records import Answer

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
HINT = "delete that file: its answers are computed again"
HELD_BYTES = 64 << 20  # bytes of parts kept in memory, as the next window mostly reads from the same ones
# NumPy strips trailing NUL bytes, which does no harm as all keys have 16 bytes.
Keys: TypeAlias = npt.NDArray[np.bytes_]
Places: TypeAlias = npt.NDArray[np.int32]


@dataclass
class Parts:
    """All parts of a store, in order; rows are numbered across them.

    A part is read whole, and the last ones are kept in memory: the next window needs rows of the same or the next part.

    Args:
        readout: whose answers they hold.
    """

    readout: Readout
    parts: list[StoredPart] = field(default_factory=list, init=False)
    begins: list[int] = field(default_factory=lambda: [0], init=False)  # first row of each part, and of the next one
    _held: OrderedDict[int, pa.Table] = field(default_factory=OrderedDict, init=False, repr=False)

    def add(self, part: StoredPart, rows: int) -> None:
        """Append a part that was just written."""
        self.parts.append(part)
        self.begins.append(self.begins[-1] + rows)

    def open(self, part: StoredPart) -> Keys:
        """Append a part found on disk, and return its keys.

        Raises:
            StoreError: the file is damaged, or not a part of this store.
        """
        table = read_part(part, self.readout.schema())
        self.add(part, len(table))
        self._hold(len(self.parts) - 1, table)
        return as_keys(table["key"].to_pylist())

    def rows(self, places: npt.NDArray[np.int32]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index in `places`, row) for each row number in `places`, part by part."""
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], self.begins[1:])
        for part, (start, end) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
            if start < end:
                which = order[start:end]
                yield from zip(which.tolist(), self._rows(part, places[which] - self.begins[part]), strict=True)

    def _rows(self, part: int, rows: npt.NDArray[np.int32]) -> Iterator[Mapping[str, Any]]:
        import pyarrow as pa

        from tithe.engine.store import arrow

        return arrow.rows(self._table(part).take(arrow.numbers(rows, pa.int32())))

    def _table(self, part: int) -> pa.Table:
        if part not in self._held:
            self._hold(part, read_part(self.parts[part], self.readout.schema()))
        self._held.move_to_end(part)
        return self._held[part]

    def _hold(self, part: int, table: pa.Table) -> None:
        self._held[part] = table
        while len(self._held) > 1 and sum(each.nbytes for each in self._held.values()) > HELD_BYTES:
            self._held.popitem(last=False)


def read_part(part: StoredPart, schema: pa.Schema) -> pa.Table:
    """Read a whole part.

    Raises:
        StoreError: the file is damaged, or not a part of this store.
    """
    table = read_table(part, HINT)
    if not table.schema.equals(schema):
        raise StoreError(f"`{part.path}` is not ours: it holds {', '.join(table.schema.names)}", hint=HINT)
    return table


def read_table(part: StoredPart, hint: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read some or all columns of a part; verify its bytes, and that no value is missing.

    Raises:
        StoreError: the file is damaged, or not a parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = part.read(hint)
    with foreign(StoreError, f"`{part.path}` is damaged or not ours", hint):
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read(columns=columns)
        table.validate(full=True)
    if any(column.null_count for column in table.columns):
        raise StoreError(f"`{part.path}` is damaged or not ours: it has rows without values", hint=hint)
    return table


def write_rows(folder: Path, number: int, readout: Readout, rows: Sequence[Mapping[str, Any]]) -> StoredPart:
    """Write answers as one part."""
    from tithe.engine.store.arrow import table

    return write_table(folder, number, table(readout.schema(), rows))


def write_table(folder: Path, number: int, table: pa.Table) -> StoredPart:
    """Write a table as one part."""
    import pyarrow.parquet as pq

    return write_part(folder, number, SUFFIX, lambda stream: pq.write_table(table, stream, compression="zstd"))


def as_keys(keys: Sequence[bytes]) -> Keys:
    """Return keys as an array: (keys,) `S16`."""
    return np.frombuffer(b"".join(keys), dtype="S16")


class KeyIndex:
    """An append-only index of 16-byte keys: key -> row number, in order of arrival.

    It holds sorted blocks, each at most half as long as the one before. So there are few of them, and a key is moved
    only as often as the index doubles.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[Keys, Places]] = []
        self.count = 0  # keys added, duplicates included

    def __len__(self) -> int:
        """Count the distinct keys; a key is only ever added to one block."""
        return sum(len(keys) for keys, _ in self.blocks)

    def extend(self, keys: Keys) -> None:
        """Add the next keys; a key that is already there keeps its first number."""
        new, first = np.unique(keys, return_index=True)
        fresh = self.find(new) < 0
        self.blocks.append((new[fresh], (first[fresh] + self.count).astype(np.int32)))
        self.count += len(keys)
        while len(self.blocks) > 1 and 2 * len(self.blocks[-1][0]) > len(self.blocks[-2][0]):
            (a, at), (b, bt) = self.blocks[-2:]
            self.blocks[-2:] = [merged(a, at, b, bt)]

    def find(self, keys: Keys) -> Places:
        """Return the row number of each key, -1 for unknown ones: (keys,)."""
        found = np.full(len(keys), -1, dtype=np.int32)
        for known, places in self.blocks:
            if len(known):
                at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
                hit = known[at] == keys
                found[hit] = places[at[hit]]
        return found


def merged(a: Keys, at: Places, b: Keys, bt: Places) -> tuple[Keys, Places]:
    """Merge two sorted blocks that have no key in common."""
    order = np.argsort(np.concatenate([a, b]), kind="stable").astype(np.int32)  # a merge sort: fast on two sorted runs
    return np.concatenate([a, b])[order], np.concatenate([at, bt])[order]


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
