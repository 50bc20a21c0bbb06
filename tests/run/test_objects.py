"""A selection goes back to Python as what it came from, or as what is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.errors import MissingExtraError, OutputError, SettingsError
from tithe.run import SelectResult

datasets = pytest.importorskip("datasets")
pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")


def chosen(data: Any, model_dir: Path, **settings: Any) -> SelectResult:
    return tithe.select(data, scorer="length", model=str(model_dir), keep=7, progress=False, **settings)


@pytest.mark.parametrize("kind", ["list", "datasets", "pandas", "polars", "arrow", "file"])
def test_kept_and_dropped_of_every_kind(kind: str, model_dir: Path, tmp_path: Path) -> None:
    rows = records(30)
    data = {
        "list": lambda: rows,
        "datasets": lambda: datasets.Dataset.from_list(rows),
        "pandas": lambda: pandas.DataFrame(rows, index=range(100, 130)),
        "polars": lambda: polars.DataFrame(rows),
        "arrow": lambda: pa.Table.from_pylist(rows),
        "file": lambda: write_jsonl(tmp_path / "data.jsonl", rows),
    }[kind]()
    result = chosen(data, model_dir)
    kept = [rows[row] for row in sorted(result.rows())]
    assert result.to_list() == list(result.records()) == kept
    assert result.to_dataset().to_list() == result.to_arrow().to_pylist() == kept
    assert result.to_polars().to_dicts() == result.to_pandas().to_dict("records") == kept
    if kind == "pandas":  # its own rows, with their index
        assert list(result.to_pandas().index) == [100 + row for row in sorted(result.rows())]
    dropped = result.to_list("dropped")
    assert len(kept) + len(dropped) == 30
    assert [{k: v for k, v in record.items() if k != "tithe_reason"} for record in dropped] == [
        row for i, row in enumerate(rows) if i not in result.rows()
    ]
    assert {record["tithe_reason"] for record in dropped} <= set(result.dropped.values())
    for table in (result.to_dataset("dropped"), result.to_arrow("dropped"), result.to_polars("dropped")):
        assert (
            table["tithe_reason"][0] == dropped[0]["tithe_reason"]
            or str(table["tithe_reason"][0]) == dropped[0]["tithe_reason"]
        )
    assert list(result.to_pandas("dropped")["tithe_reason"]) == [record["tithe_reason"] for record in dropped]


def test_a_dataset_keeps_its_features_and_writes_nothing(model_dir: Path, tmp_path: Path) -> None:
    features = datasets.Features({"instruction": datasets.Value("large_string"), "output": datasets.Value("string")})
    rows = [{"instruction": record["instruction"], "output": record["output"]} for record in records(30)]
    data = datasets.Dataset.from_list(rows, features=features)
    before = set(tmp_path.rglob("*"))
    result = chosen(data, model_dir, run_dir=tmp_path / "run")
    kept = result.to_dataset()
    assert kept.features == features and kept.cache_files == []
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert written and all(path.is_relative_to(tmp_path / "run") for path in written)


def test_rows_that_are_no_records_come_back_as_text(model_dir: Path) -> None:
    result = chosen([*records(12), 5, "text", {"instruction": 3, "output": "x"}], model_dir)
    dropped = result.to_list("dropped")
    assert [record.get("tithe_raw") for record in dropped[-3:]] == [5, "text", None]
    assert result.to_list("dropped")[-1]["instruction"] == 3
    with pytest.raises(OutputError, match="do not fit the columns of a table"):
        result.to_arrow("dropped")  # an instruction is text in one record, and a number in another
    result = chosen([*records(12), 5, "text"], model_dir)
    assert result.to_dataset("dropped")["tithe_raw"][-2:] == ["5", "text"]


def test_a_part_that_is_none_and_a_package_that_is_missing(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = chosen(records(12), model_dir)
    with pytest.raises(SettingsError) as caught:
        result.to_list("keptt")  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean `kept`?"
    monkeypatch.setitem(sys.modules, "polars", None)
    for use in (result.to_polars, result.scored.to_polars):
        with pytest.raises(MissingExtraError, match="needs the package `polars`"):
            use()


def test_the_table_of_scores_as_objects(model_dir: Path, tmp_path: Path) -> None:
    scored = tithe.score(records(12), scorer="length", model=str(model_dir), progress=False)
    assert list(scored.to_pandas()["row"]) == scored.to_dataset()["row"] == list(range(12))
    assert list(scored.to_polars()["length"]) == scored.table["length"].to_pylist()
    scored.write(tmp_path / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").equals(scored.table)
