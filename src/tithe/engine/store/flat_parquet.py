"""Tables of plain numbers written as parquet without pyarrow, which costs 38 MB beside the passes under way.

One row group, one plain and uncompressed page a column (hashes and likelihoods hardly compress), no nulls. The types
are those that pyarrow reads back as it would have written them. Layout: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

KINDS = {"int32": (1, "<i4"), "float32": (4, "<f4"), "float64": (5, "<f8")}  # parquet's number of it, NumPy's
FIXED_BYTES = 7
OPTIONAL, PLAIN, RLE, UNCOMPRESSED, DATA_PAGE = 1, 0, 3, 0, 0
MAGIC = b"PAR1"
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12  # Thrift's compact protocol
MOST_BESIDE = 128  # bytes a column that are no values, and a hundred of the file's
Value: TypeAlias = tuple[int, Any]  # type, value; of a list: (type of its items, items)


def can_write(fields: Mapping[str, Any]) -> bool:
    """Tell whether all of these columns are plain numbers."""
    return all(isinstance(kind, str) and kind in KINDS for kind in fields.values())


def write(stream: BinaryIO, fields: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows' keys, of one length, and their numbers.

    Args:
        stream: open for writing, at its beginning.
        fields: name of a column -> one of `KINDS`; before them stands `key`.
        rows: at least one.
    """
    keys = [row["key"] for row in rows]
    width = len(keys[0])
    assert all(len(key) == width for key in keys), width
    stream.write(MAGIC + page_head(len(rows), len(rows) * width) + b"".join(keys))
    for name, kind in fields.items():
        values = np.array([row[name] for row in rows], dtype=KINDS[kind][1]).tobytes()
        stream.write(page_head(len(rows), len(values)) + values)
    stream.write(layout(fields, len(rows), width)[1])


def layout(fields: Mapping[str, str], count: int, width: int = 16) -> tuple[dict[str, int], bytes]:
    """Return where each column's values begin in a file of so many rows, and all that follows the last.

    Args:
        fields: as `write` takes them.
        count: rows.
        width: bytes of a key.
    """
    begins, chunks, schema, at = dict[str, int](), list[dict[int, Value]](), list[dict[int, Value]](), len(MAGIC)
    for name, number, size in columns_of(fields, width):
        head = page_head(count, count * size)
        length = {2: (I32, size)} if number == FIXED_BYTES else {}
        schema.append({1: (I32, number), **length, 3: (I32, OPTIONAL), 4: text(name)})
        whole = len(head) + count * size
        chunks.append({2: (I64, at), 3: (STRUCT, column_facts(name, number, count, whole, at))})
        begins[name] = at + len(head)
        at += whole
    group = {1: (LIST, (STRUCT, chunks)), 2: (I64, at - len(MAGIC)), 3: (I64, count)}
    root = {4: text("schema"), 5: (I32, len(schema))}
    footer = thrift(
        {
            1: (I32, 2),
            2: (LIST, (STRUCT, [root, *schema])),
            3: (I64, count),
            4: (LIST, (STRUCT, [group])),
            6: text("tithe"),
        }
    )
    return begins, footer + struct.pack("<I", len(footer)) + MAGIC


def columns_of(fields: Mapping[str, str], width: int) -> list[tuple[str, int, int]]:
    """Return each column's name, parquet's number of its type, and the bytes of a value."""
    numbers = [(name, KINDS[kind][0], np.dtype(KINDS[kind][1]).itemsize) for name, kind in fields.items()]
    return [("key", FIXED_BYTES, width), *numbers]


def rows_in(path: Path, fields: Mapping[str, str]) -> int | None:
    """Count the rows of a file; None unless `write` wrote it, to its last byte.

    The size says how many there can be, and the footer of so many is compared.
    """
    size = path.stat().st_size
    each = sum(width for _, _, width in columns_of(fields, 16))
    with path.open("rb") as stream:
        for count in range(size // each, max(0, size // each - MOST_BESIDE * (len(fields) + 2) // each - 1), -1):
            begins, rest = layout(fields, count)
            (last, _, width) = columns_of(fields, 16)[-1]
            if begins[last] + count * width + len(rest) == size:
                stream.seek(size - len(rest))
                return count if stream.read() == rest else None
    return None


def read(path: Path, fields: Mapping[str, str], count: int, rows: npt.NDArray[Any]) -> dict[str, list[Any]]:
    """Read rows of a file that `write` wrote with keys of 16 bytes, by column.

    Args:
        path: the file.
        fields: as `write` took them.
        count: `rows_in` it.
        rows: which, counted from 0.
    """
    begins, _ = layout(fields, count)
    found = dict[str, list[Any]]()
    for name, kind in fields.items():
        values = np.memmap(path, dtype=KINDS[kind][1], mode="r", offset=begins[name], shape=(count,))
        found[name] = values[rows].tolist()
    return found


def keys(path: Path, fields: Mapping[str, str], count: int) -> npt.NDArray[np.bytes_]:
    """Return (count,) `S16`: the keys of a file that `write` wrote."""
    begins, _ = layout(fields, count)
    return np.memmap(path, dtype="S16", mode="r", offset=begins["key"], shape=(count,))


def page_head(count: int, size: int) -> bytes:
    """Return what stands before a page's values: its header, and a run of `count` times "not null".

    Args:
        count: values.
        size: bytes of them all.
    """
    present = varint(count << 1) + b"\x01"
    body = 4 + len(present) + size
    facts = {1: (I32, count), 2: (I32, PLAIN), 3: (I32, RLE), 4: (I32, RLE)}
    page = thrift({1: (I32, DATA_PAGE), 2: (I32, body), 3: (I32, body), 5: (STRUCT, facts)})
    return page + struct.pack("<I", len(present)) + present


def column_facts(name: str, number: int, count: int, size: int, at: int) -> dict[int, Value]:
    return {
        1: (I32, number),
        2: (LIST, (I32, [PLAIN, RLE])),
        3: (LIST, (BINARY, [name.encode()])),
        4: (I32, UNCOMPRESSED),
        5: (I64, count),
        6: (I64, size),
        7: (I64, size),
        9: (I64, at),
    }


def text(value: str) -> Value:
    return BINARY, value.encode()


def thrift(fields: Mapping[int, Value]) -> bytes:
    """Encode a struct in Thrift's compact protocol; field numbers ascend by less than 16."""
    out, before = b"", 0
    for number, (kind, value) in fields.items():
        out += bytes([(number - before) << 4 | kind]) + encoded(kind, value)
        before = number
    return out + b"\x00"


def encoded(kind: int, value: Any) -> bytes:
    if kind == STRUCT:
        return thrift(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind == LIST:
        inner, items = value
        head = bytes([len(items) << 4 | inner]) if len(items) < 15 else bytes([0xF0 | inner]) + varint(len(items))
        return head + b"".join(encoded(inner, item) for item in items)
    return varint(value << 1)  # zigzag of a number that is not negative


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
