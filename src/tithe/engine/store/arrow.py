"""Convert rows to Arrow tables and back by way of NumPy.

pyarrow imports pandas, if that is installed, as soon as it makes an array from Python values: 33 MB and a third of a
second for nothing. Only the types that readouts store are supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def schema(fields: Mapping[str, str | pa.DataType]) -> pa.Schema:
    """Return the columns of a readout, after their key; types are names (`float32`, `list<float32>`) or pyarrow's."""
    return pa.schema([("key", pa.binary(16)), *((name, data_type(kind)) for name, kind in fields.items())])


def data_type(kind: str | pa.DataType) -> pa.DataType:
    """Return pyarrow's type for a type name."""
    if not isinstance(kind, str):
        return kind
    if kind.startswith("list<"):
        return pa.list_(pa.type_for_alias(kind[5:-1]))
    return pa.type_for_alias(kind)


def table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make a table with the schema's columns; no value is null.

    Raises:
        TypeError: a column is not of numbers, fixed-size binary, or lists of numbers.
    """
    return pa.table([column([row[field.name] for row in rows], field.type) for field in schema], schema=schema)


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Make one column from its values."""
    if pa.types.is_fixed_size_binary(kind):
        # Arrow's layout of fixed-size values: no null bitmap, then all bytes one after another.
        assert set(map(len, values)) <= {kind.byte_width}, kind
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(b"".join(values))])
    if pa.types.is_list(kind):
        parts = [np.asarray(value, dtype=kind.value_type.to_pandas_dtype()) for value in values]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int32)  # Arrow's offsets: row i is inner[ends[i]:ends[i + 1]]
        inner = numbers(np.concatenate(parts), kind.value_type) if parts else numbers([], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(ends)], children=[inner])
    return numbers(values, kind)


def numbers(values: Sequence[Any] | npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Make a column of numbers of one type."""
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TypeError(f"no column of {kind} is stored")
    made = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(made), [None, pa.py_buffer(made)])


def rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield a table's rows; lists of numbers stay arrays, as Python objects would take eight times the memory."""
    columns = {name: values(table[name]) for name in table.column_names}
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Return the values of a column."""
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    return [part for chunk in column.chunks for part in cut(chunk)]


def cut(chunk: pa.ListArray) -> list[npt.NDArray[Any]]:
    """Return lists of numbers as views of one array."""
    if not len(chunk):
        return []
    # A sliced chunk shares its parent's buffers: `flatten` and `value_lengths` respect the slice, raw offsets do not.
    ends = np.cumsum(chunk.value_lengths().to_numpy())
    return np.split(chunk.flatten().to_numpy(), ends[:-1])
