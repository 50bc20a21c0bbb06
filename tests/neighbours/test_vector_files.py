"""Files of vectors that are damaged: one sentence, and nothing is unpickled."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tithe.errors import DataError
from tithe.neighbours.vector_files import read_npy, read_parquet


def npy(header: bytes) -> bytes:
    """An array's file with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, ",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'more\n",
        b"{'descr': 'no type', 'fortran_order': False, 'shape': (2, 2), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 10000000000000000000000), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }\n",
        b"(" * 5_000 + b"\n",
        b"\\\n\\ 0x",
        b"\xff\xfe\n",
        b"",
    ],
)
def test_a_damaged_header(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(npy(header))
    with pytest.raises(DataError) as caught:
        read_npy(path)
    assert f"`{path}`" in str(caught.value) and "(records, width)" in str(caught.value.hint)


def test_other_files_by_the_name_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    stream = io.BytesIO()
    np.savez(stream, a=np.eye(2))
    for raw in (b"", b"\x80\x04K\x01.", stream.getvalue(), stream.getvalue()[:30]):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"v\.npy"):
            read_npy(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe"):
        read_npy(path)


@pytest.mark.parametrize("keys", [[["a"], ["b"]], [{"x": 1}, {"x": 2}]])
def test_keys_that_are_no_keys(tmp_path: Path, keys: list[object]) -> None:
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"id": keys, "vector": [[1.0], [2.0]]}), path)
    with pytest.raises(DataError, match=r"v\.parquet"):
        read_parquet(path)
