"""Read vectors that the user computed: parquet with an `id` or `row` column, or `.npy` with one row per record."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tithe.engine.model_source import content_hash
from tithe.errors import DataError, SettingsError
from tithe.foreign import demand_regular, foreign
from tithe.neighbours.encoder import FILE, Encoder, PlacedEncoder, Vectors
from tithe.records import Example

HINT = "parquet with the columns `id` or `row`, and `vector`; or .npy of shape (records, width)"


class VectorFile(PlacedEncoder):
    """A file of vectors, one for each record of a data set.

    Args:
        name: the spec.
        path: the file.
        corpus: the data set that it belongs to; empty if unknown.
        rows: number of records in the data set, unreadable ones included, if known.
    """

    libraries = ("numpy", "pyarrow")

    def __init__(self, name: str, path: Path, corpus: Sequence[Example], rows: int | None) -> None:
        super().__init__(name)
        self.path, self.rows = path, rows
        self.ours = {example.id for example in corpus}

    def identity(self) -> dict[str, Any]:
        return {"kind": "file", "file": self.path.name, "sha256": content_hash(self.path).decode()}

    @cached_property
    def table(self) -> tuple[str, dict[Any, int], Vectors]:
        """Read the file: the key of its vectors (`id` or `row`), key -> position, and the vectors."""
        if self.path.suffix == ".npy":
            vectors = read_npy(self.path)
            if self.rows is not None and len(vectors) != self.rows:
                raise DataError(
                    f"`{self.path}` has {len(vectors)} vectors, but the data set has {self.rows} records",
                    hint="it belongs to another data set, or to another version of it",
                )
            return "row", {row: row for row in range(len(vectors))}, vectors
        return read_parquet(self.path)

    def look_up(self, examples: Sequence[Example]) -> Vectors:
        strangers = sum(example.id not in self.ours for example in examples) if self.ours else 0
        if strangers:
            raise DataError(
                f"`{self.path}` has vectors for the data set only, and {strangers} of {len(examples)} examples come "
                "from another one",
                hint="for a shot pool, use an encoder that reads texts",
            )
        by, places, vectors = self.table
        found = [places.get(example.id if by == "id" else example.row, -1) for example in examples]
        missing = [example for example, place in zip(examples, found, strict=True) if place < 0]
        if missing:
            name = missing[0].id if by == "id" else missing[0].row
            raise DataError(
                f"`{self.path}` has {len(vectors)} vectors, but none for {len(missing)} of {len(examples)} examples, "
                f"e.g. {by} `{name}` ({missing[0].where})",
                hint="it belongs to another data set, or to another version of it",
            )
        return vectors[np.array(found, dtype=np.int64)]


def read_npy(path: Path) -> Vectors:
    with foreign(DataError, f"cannot read `{path}`", HINT):
        demand_regular(path, DataError, HINT)
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # it reads plain arrays only and never unpickles
        except ValueError as error:
            raise DataError(f"`{path}` is not an array of numbers", hint=HINT) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        shape = f"shape {array.shape} of {array.dtype}"
        raise DataError(f"`{path}` has {shape}, but must hold numbers of shape (records, width)", hint=HINT)
    return np.asarray(array, dtype=np.float32)


def read_parquet(path: Path) -> tuple[str, dict[Any, int], Vectors]:
    import pyarrow.parquet as pq

    with foreign(DataError, f"cannot read `{path}`", HINT), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        by = next((name for name in ("id", "row") if name in names), None)
        if by is None or "vector" not in names:
            raise DataError(f"`{path}` has the columns {', '.join(names)}", hint=HINT)
        table = file.read(columns=[by, "vector"])
        table.validate(full=True)
        keys = table[by].to_pylist()
        places = {key: place for place, key in enumerate(keys)}
    if len(places) != len(keys):
        raise DataError(f"`{path}` has {len(keys)} rows, but only {len(places)} distinct values of `{by}`", hint=HINT)
    return by, places, matrix(table["vector"].combine_chunks(), path)


def matrix(column: Any, path: Path) -> Vectors:
    """Turn a column of equally long lists into an array: (rows, width)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise DataError(f"`vector` in `{path}` is {column.type}, but must be a list of numbers", hint=HINT)
    lengths = pc.list_value_length(column)
    narrow, wide = pc.min(lengths).as_py(), pc.max(lengths).as_py()
    if column.null_count or narrow != wide:
        what = f"{column.null_count} empty entries" if column.null_count else f"widths from {narrow} to {wide}"
        raise DataError(f"`vector` in `{path}` has {what}; all vectors must be equally wide", hint=HINT)
    with foreign(DataError, f"`vector` in `{path}` holds no numbers", HINT):
        flat = column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(column), wide or 0)


def make_vector_file(spec: str, settings: Mapping[str, str], corpus: Sequence[Example], rows: int | None) -> Encoder:
    name = spec.strip().partition("(")[0].strip().removeprefix(FILE)
    if settings:
        raise SettingsError(f"`{spec}`: vectors from a file take no settings", hint=f"`{FILE}{name}`")
    path = Path(name).expanduser()
    if path.suffix not in (".npy", ".parquet"):
        raise SettingsError(f"`{name}` is not a file of vectors", hint=HINT)
    if not path.is_file():
        folder = path.parent
        names = [entry.name for entry in folder.iterdir() if entry.suffix == path.suffix] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
        hint = f"did you mean `{FILE}{folder / near[0]}`?" if near else f"`{folder}` has no `{path.name}`"
        raise SettingsError(f"there is no file of vectors `{path}`", hint=hint)
    return VectorFile(spec, path, corpus, rows)
