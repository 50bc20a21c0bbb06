"""Parts of a store: parquet files of answers, read back a few rows at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tithe.engine import flat_parquet
from tithe.engine.key_index import Keys, as_keys
from tithe.engine.readouts import Readout
from tithe.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

HELD_BYTES = 64 << 20  # of parts that have to be read whole, so that the next window finds them open


@dataclass
class Parts:
    """The parts that there are, in their order; rows are numbered through.

    Plain numbers stand in their file one after the other: rows are picked out of it. Other parts, and those that
    another program has written, are read whole, and the last ones are kept for a while.

    Args:
        readout: whose answers.
    """

    readout: Readout
    paths: list[Path] = field(default_factory=list, init=False)
    begins: list[int] = field(default_factory=lambda: [0], init=False)  # first row of each, and of the next
    flat: list[bool] = field(default_factory=list, init=False)
    _held: OrderedDict[int, pa.Table] = field(default_factory=OrderedDict, init=False, repr=False)

    def add(self, path: Path, rows: int, flat: bool) -> None:
        """Name a part that was written."""
        self.paths.append(path)
        self.begins.append(self.begins[-1] + rows)
        self.flat.append(flat)

    def open(self, path: Path) -> Keys:
        """Name a part that was there, and give its keys.

        Raises:
            StoreError: it is damaged, or something else.
        """
        fields = self.readout.fields
        count = flat_parquet.rows_in(path, fields) if flat_parquet.can_write(fields) else None
        if count is not None:
            self.add(path, count, True)
            return flat_parquet.keys(path, fields, count)
        table = read_part(path, self.readout.schema())
        self.add(path, len(table), False)
        self._hold(len(self.paths) - 1, table)
        return as_keys(table["key"].to_pylist())

    def rows(self, places: npt.NDArray[np.int32]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """(index in `places`, row) of every place, part by part."""
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], self.begins[1:])
        for part, (start, end) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
            if start < end:
                which = order[start:end]
                yield from zip(which.tolist(), self._rows(part, places[which] - self.begins[part]), strict=True)

    def _rows(self, part: int, rows: npt.NDArray[np.int32]) -> Iterator[Mapping[str, Any]]:
        if self.flat[part]:
            count = self.begins[part + 1] - self.begins[part]
            columns = flat_parquet.read(self.paths[part], self.readout.fields, count, rows)
            return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        import pyarrow as pa

        from tithe.engine import arrow

        return arrow.rows(self._table(part).take(arrow.numbers(rows, pa.int32())))

    def _table(self, part: int) -> pa.Table:
        if part not in self._held:
            self._hold(part, read_part(self.paths[part], self.readout.schema()))
        self._held.move_to_end(part)
        return self._held[part]

    def _hold(self, part: int, table: pa.Table) -> None:
        self._held[part] = table
        while len(self._held) > 1 and sum(each.nbytes for each in self._held.values()) > HELD_BYTES:
            self._held.popitem(last=False)


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """A part as a whole.

    Raises:
        StoreError: it is damaged, or something else.
    """
    import pyarrow as pa  # not before: it takes its memory beside the passes under way
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


def write_rows(path: Path, readout: Readout, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Plain numbers without pyarrow, all else with it; both are parquet of the same schema. Whether they are plain."""
    if flat_parquet.can_write(readout.fields):
        with new_part(path) as stream:
            flat_parquet.write(stream, readout.fields, rows)
        return True
    from tithe.engine.arrow import table

    write_part(path, table(readout.schema(), rows))
    return False


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
