"""The public functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tithe
from tests.e2e.command import read_jsonl, records, write_jsonl
from tithe.errors import OutputError, SettingsError, TitheError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", records(40))


def test_load_score_select_write(data: Path, model_dir: Path, tmp_path: Path) -> None:
    loaded = tithe.load(data, limit=30)
    scores = tithe.score(loaded, scorer=["ifd", "length"], model=str(model_dir))
    assert len(scores) == 30 and "30 examples" in str(scores) and "ifd: " in str(scores)
    assert scores.scores().by == "ifd" and len(scores.scores("length")) == 30
    kept = tithe.select(loaded, scorer="ifd", model=str(model_dir), keep=4)
    assert len(kept) == len(kept.kept) == 4 and len(kept.dropped) == 26
    assert str(kept).startswith("kept 4 of 30 by top(ties='first') on ifd")
    best = scores.scores().values
    best = np.sort(best[best <= 1])[::-1][:4]
    chosen = [value for id_, value in scores.scores() if id_ in set(kept.kept)]
    np.testing.assert_allclose(sorted(chosen, reverse=True), best, rtol=1e-6)
    kept.write(tmp_path / "kept.jsonl")
    assert read_jsonl(tmp_path / "kept.jsonl") == list(kept.records())
    with pytest.raises(OutputError, match="exists"):
        kept.write(tmp_path / "kept.jsonl")
    kept.write(tmp_path / "kept.jsonl", overwrite=True)
    scores.write(tmp_path / "scores.parquet")
    # The table in one piece is made for those who ask for it, not to write a file.
    assert "table" not in scores.__dict__ and "table" not in kept.scored.__dict__
    assert pq.read_table(tmp_path / "scores.parquet").equals(scores.table) and scores.table is scores.table


def test_a_run_folder_is_gone_on_from(data: Path, model_dir: Path, tmp_path: Path) -> None:
    first = tithe.score(data, model=str(model_dir), run_dir=tmp_path / "run")
    second = tithe.select(data, model=str(model_dir), run_dir=str(tmp_path / "run"), keep=0.1)
    assert first.record["work"]["passes_computed"] == second.record["work"]["passes_reused"] == 80
    assert len(second) == 4 and (tmp_path / "run" / "dropped.jsonl").exists()


def test_nothing_is_left_behind_without_a_run_folder(
    data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tithe.score(data, model=str(model_dir), limit=5)
    assert not list((tmp_path / "here").iterdir())


def test_plan_prints_well(data: Path, model_dir: Path) -> None:
    planned = tithe.plan(data, scorer="ifd", model=str(model_dir))
    assert str(planned).startswith("40 examples, forward passes: 40 given, 40 alone, ")


def test_per_token_without_a_run_folder_is_refused(data: Path, model_dir: Path) -> None:
    with pytest.raises(SettingsError, match="per_token"):
        tithe.score(data, model=str(model_dir), per_token=True)


def test_settings_are_checked(data: Path, model_dir: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        tithe.score(data, model=str(model_dir), max_lenght=5)
    assert caught.value.hint == "did you mean `max_length`?"
    with pytest.raises(SettingsError, match="no scores of `idf`"):
        tithe.score(data, scorer="length", model=str(model_dir)).scores("idf")
    with pytest.raises(TitheError, match="no file or folder"):
        tithe.load(data.with_name("data.json"))


def test_a_name_that_is_not_there() -> None:
    assert {"load", "plan", "score", "select"} <= set(dir(tithe))
    with pytest.raises(AttributeError, match="scoer"):
        _ = tithe.scoer


def test_results_do_not_overwrite_what_was_read(tmp_path: Path, model_dir: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("".join(f'{{"instruction": "say {i}", "output": "it is {i}"}}\n' for i in range(20)))
    before = data.read_bytes()
    chosen = tithe.select(data, scorer="length", model=str(model_dir), keep=5)
    with pytest.raises(OutputError, match="is the data set itself"):
        chosen.write(data, overwrite=True)
    scored = tithe.score(data, scorer="length", model=str(model_dir))
    with pytest.raises(SettingsError, match="scores are written as"):
        scored.write(tmp_path / "x.xlsx")
    assert data.read_bytes() == before and not (tmp_path / "x.xlsx").exists()
    scored.write(tmp_path / "x.csv")
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 21
    assert repr(scored).startswith("<ScoreResult: length of 20 rows")
    assert repr(chosen).startswith("<SelectResult: 5 of 20 kept")


def test_what_an_open_data_set_settles_is_refused_beside_it(tmp_path: Path, model_dir: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"instruction": "say", "output": "it"}\n')
    with pytest.raises(SettingsError, match="`limit` is set when a data set is opened"):
        tithe.score(tithe.load(data), limit=1, scorer="length", model=str(model_dir))
