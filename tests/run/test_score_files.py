"""Scores as CSV and JSON lines have the values of Parquet; ranks beside records are counts of higher scores."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tithe.errors import SettingsError
from tithe.run.record_scores import RecordScores, ranks
from tithe.run.score_files import check_scores_file, write_scores
from tithe.run.table import ScoreTable

VALUES = [0.1 + 0.2, None, 1e-300, 123456789.123456789]


def table() -> pa.Table:
    return pa.table(
        {
            "id": pa.array(["a", "b", None, "d"]),
            "row": pa.array([0, 1, 2, 3]),
            "ifd": pa.array(VALUES),
            "turn": pa.array([1, None, None, 1], pa.int32()),
            "problem": pa.array([None, "=cmd|' /C calc'!A0", 'say "no", twice\nor so', "@x"]),
        }
    )


def parts() -> list[pa.Table]:
    return [table().slice(0, 3), table().slice(3)]


def test_csv_keeps_every_bit_and_computes_nothing(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.csv", parts())
    with (tmp_path / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["ifd"]) if row["ifd"] else None for row in rows] == VALUES
    assert [row["turn"] for row in rows] == ["1", "", "", "1"] and [row["id"] for row in rows] == ["a", "b", "", "d"]
    assert [row["problem"] for row in rows] == ["", "'=cmd|' /C calc'!A0", 'say "no", twice\nor so', "'@x"]


def test_pandas_reads_what_parquet_has(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    write_scores(tmp_path / "s.csv", parts())
    write_scores(tmp_path / "s.jsonl", parts())
    for read in (
        pd.read_csv(tmp_path / "s.csv"),
        pd.read_json(tmp_path / "s.jsonl", lines=True, precise_float=True),
    ):
        assert math.isnan(read["ifd"][1])
        there = [x for x in VALUES if x is not None]  # pandas' own reading may be off by one unit in the last place
        assert read["ifd"].dropna().tolist() == pytest.approx(there, rel=1e-15)


def test_json_lines_are_json(tmp_path: Path) -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    odd = pa.table({"a": pa.array([math.inf, -math.inf, math.nan, 1.5])})
    write_scores(tmp_path / "s.jsonl.gz", [odd])
    lines = gzip.decompress((tmp_path / "s.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line, parse_constant=refuse)["a"] for line in lines] == [math.inf, -math.inf, None, 1.5]
    write_scores(tmp_path / "t.jsonl", parts())
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == table().to_pylist()


@pytest.mark.parametrize("name", ["s.xlsx", "s.json", "s", "s.parquet.gz", ".csv"])
def test_other_suffixes_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="scores are written as") as error:
        check_scores_file(Path(name))
    assert ".parquet`" in str(error.value.hint)


def test_ranks_are_one_more_than_the_number_of_higher_scores() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 30, 500).astype(float)
    values[rng.random(500) < 0.1] = np.nan
    expected = [0 if math.isnan(x) else 1 + sum(other > x for other in values) for x in values]
    assert ranks(values).tolist() == expected


def score_table() -> ScoreTable:
    names = ScoreTable(["ifd"]).schema.names
    columns: dict[str, list[Any]] = {name: [None] * 4 for name in names}
    columns |= {
        "id": ["a", "b", "c", None],
        "row": [0, 0, 1, 2],
        "turn": [1, 3, 1, None],
        "ifd": [0.5, 0.9, None, None],
    }
    return ScoreTable.from_columns(columns, {"ifd": {2: "why", 3: "bad"}})


def test_columns_beside_a_record() -> None:
    several, one = RecordScores(score_table(), several=True), RecordScores(score_table(), several=False)
    assert several(0) == {"tithe_score_ifd": [0.5, 0.9], "tithe_rank_ifd": [2, 1]}
    assert several(0, {1}) == {"tithe_score_ifd": [0.5], "tithe_rank_ifd": [2]}
    assert several(0, [3], single=True) == {"tithe_score_ifd": 0.9, "tithe_rank_ifd": 1}
    assert one(1) == one(2) == {"tithe_score_ifd": None, "tithe_rank_ifd": None}
