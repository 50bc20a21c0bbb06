"""Parquet of plain numbers: pyarrow reads back what was written, as if it had written it."""

import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.engine.readouts.base import READOUTS
from tithe.engine.store import arrow, flat_parquet

NUMBERS = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(),
}


def written(fields, rows):
    stream = io.BytesIO()
    flat_parquet.write(stream, fields, rows)
    return stream


@settings(deadline=None)
@given(st.data(), st.lists(st.sampled_from(sorted(NUMBERS)), max_size=20), st.integers(1, 40))
def test_pyarrow_reads_the_same_table(data, kinds, width):
    """More than 14 columns and names beyond ASCII included: both are written in another way."""
    fields = {f"spalte ä {i}": kind for i, kind in enumerate(kinds)}
    row = {"key": st.binary(min_size=width, max_size=width)}
    row |= {name: NUMBERS[kind] for name, kind in fields.items()}
    rows = data.draw(st.lists(st.fixed_dictionaries(row), min_size=1, max_size=9))
    schema = pa.schema([("key", pa.binary(width)), *((n, pa.type_for_alias(k)) for n, k in fields.items())])
    table = pq.read_table(written(fields, rows))
    assert table.schema.equals(schema)
    for name in schema.names:
        values = [each[name] for each in rows]
        if name == "key":
            assert table[name].to_pylist() == values
        else:
            np.testing.assert_array_equal(table[name].to_numpy(), np.array(values, dtype=fields[name]))


@pytest.mark.parametrize("count", [1, 63, 64, 8191, 8192, 300_000])
def test_any_number_of_rows(count):
    """Counts are written in 7 bits a byte: around each further one."""
    rows = [{"key": struct.pack(">QQ", 0, i), "total": float(i), "tokens": i, "first": 0.5} for i in range(count)]
    fields = READOUTS["nll"].fields
    stream = written(fields, rows)
    assert pq.read_table(stream, page_checksum_verification=True).equals(arrow.table(arrow.schema(fields), rows))
    facts = pq.ParquetFile(stream).metadata
    assert facts.num_rows == count and facts.num_row_groups == 1


def test_what_is_not_plain():
    assert flat_parquet.can_write(READOUTS["nll"].fields)
    assert not flat_parquet.can_write(READOUTS["nll_tokens"].fields)
    assert not flat_parquet.can_write({"x": pa.float32()})  # its types may be anything
