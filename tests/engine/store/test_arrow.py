"""Arrow tables are made without Python values."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.engine.readouts.base import READOUTS
from tithe.engine.store import arrow

SCHEMA = READOUTS["nll_tokens"].schema()
ROW = st.fixed_dictionaries(
    {
        "key": st.binary(min_size=16, max_size=16),
        "total": st.floats(allow_nan=False),
        "tokens": st.integers(0, 2**31 - 1),
        "first": st.floats(width=32, allow_nan=False),
        "per_token": st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    }
)


@settings(deadline=None)
@given(st.lists(ROW, max_size=6))
def test_the_same_table_as_from_python_values(rows):
    as_stored = [{**row, "per_token": np.array(row["per_token"], dtype=np.float32)} for row in rows]
    made = arrow.table(SCHEMA, as_stored)
    made.validate(full=True)
    assert made.equals(pa.Table.from_pylist(rows, schema=SCHEMA))
    back = list(arrow.rows(pa.concat_tables([made.slice(3), made.slice(0, 3)])))  # in chunks that begin elsewhere
    assert all(one["per_token"].dtype == np.float32 for one in back)
    assert [{**one, "per_token": one["per_token"].tolist()} for one in back] == [*rows[3:], *rows[:3]]


def test_nan_stays():
    made = arrow.table(pa.schema([("x", pa.float32())]), [{"x": float("nan")}])
    assert np.isnan(made["x"].to_pylist()[0])


def test_a_type_that_no_readout_stores():
    with pytest.raises(TypeError, match="string"):
        arrow.table(pa.schema([("x", pa.string())]), [{"x": "a"}])


def test_the_store_leaves_pandas_alone(tmp_path):
    script = """
import sys
from pathlib import Path
from tithe.engine.readouts.base import READOUTS
from tithe.engine.store.store import Store
store = Store(Path(sys.argv[1]), READOUTS["nll"], "x")
store.put([(b"k" * 16, {"total": 1.5, "tokens": 2, "first": 0.5})])
store.flush()
again = Store(Path(sys.argv[1]), READOUTS["nll"], "x").get([b"k" * 16])
assert again[b"k" * 16].total == 1.5
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
