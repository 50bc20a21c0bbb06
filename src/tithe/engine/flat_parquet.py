"""Tables of plain numbers written as parquet without pyarrow, which costs 38 MB beside the passes under way.

One row group, one plain and uncompressed page a column (hashes and likelihoods hardly compress), no nulls. The types
are those that pyarrow reads back as it would have written them. Layout: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np

KINDS = {"int32": (1, "<i4"), "float32": (4, "<f4"), "float64": (5, "<f8")}  # parquet's number of it, NumPy's
FIXED_BYTES = 7
OPTIONAL, PLAIN, RLE, UNCOMPRESSED, DATA_PAGE = 1, 0, 3, 0, 0
MAGIC = b"PAR1"
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12  # Thrift's compact protocol
Value: TypeAlias = tuple[int, Any]  # type, value; of a list: (type of its items, items)


def can_write(fields: Mapping[str, Any]) -> bool:
    """Whether all of these columns are plain numbers."""
    return all(isinstance(kind, str) and kind in KINDS for kind in fields.values())


def write(stream: BinaryIO, fields: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows' keys, of one length, and their numbers.

    Args:
        stream: open for writing, at its beginning.
        fields: name of a column -> one of `KINDS`; before them stands `key`.
        rows: at least one.
    """
    keys = [row["key"] for row in rows]
    width = len(keys[0])
    assert all(len(key) == width for key in keys), width
    columns = [("key", FIXED_BYTES, b"".join(keys))]
    for name, kind in fields.items():
        number, dtype = KINDS[kind]
        columns.append((name, number, np.array([row[name] for row in rows], dtype=dtype).tobytes()))
    stream.write(MAGIC)
    at, chunks, schema = len(MAGIC), list[dict[int, Value]](), [{4: text("schema"), 5: (I32, len(columns))}]
    for name, number, values in columns:
        page = data_page(len(rows), values)
        stream.write(page)
        length = {2: (I32, width)} if number == FIXED_BYTES else {}
        schema.append({1: (I32, number), **length, 3: (I32, OPTIONAL), 4: text(name)})
        chunks.append({2: (I64, at), 3: (STRUCT, column_facts(name, number, len(rows), len(page), at))})
        at += len(page)
    group = {1: (LIST, (STRUCT, chunks)), 2: (I64, at - len(MAGIC)), 3: (I64, len(rows))}
    footer = thrift(
        {1: (I32, 2), 2: (LIST, (STRUCT, schema)), 3: (I64, len(rows)), 4: (LIST, (STRUCT, [group])), 6: text("tithe")}
    )
    stream.write(footer + struct.pack("<I", len(footer)) + MAGIC)


def data_page(count: int, values: bytes) -> bytes:
    """Header, a run of `count` times "there is a value", the values."""
    present = varint(count << 1) + b"\x01"
    body = struct.pack("<I", len(present)) + present + values
    facts = {1: (I32, count), 2: (I32, PLAIN), 3: (I32, RLE), 4: (I32, RLE)}
    return thrift({1: (I32, DATA_PAGE), 2: (I32, len(body)), 3: (I32, len(body)), 5: (STRUCT, facts)}) + body


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
    """A struct in Thrift's compact protocol; field numbers ascend by less than 16."""
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
