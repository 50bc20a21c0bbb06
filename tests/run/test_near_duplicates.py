"""Select without near-duplicates: the best of a group stays, and the others have their own reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tithe as library
from tests.e2e.command import Command, read_jsonl, records, write_jsonl
from tithe.errors import SettingsError
from tithe.run.pipeline import select
from tithe.settings import SelectSettings

STORY = "The lamp stood on the table by the window, and every evening the old baker lit it before he read a letter."


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """20 records: 3 and 4 are equal, 6, 7 and 9 nearly, 9 is the longest."""
    made = records(20)
    made[3] |= {"instruction": "Tell the tale of the river", "input": "", "output": STORY.replace("lamp", "river")}
    made[4] |= {name: made[3][name] for name in ("instruction", "input", "output")}
    story = {"instruction": "Tell a story about a lamp.", "input": ""}
    made[6] |= story | {"output": STORY}
    made[7] |= story | {"output": STORY.replace(",", ";")}
    made[9] |= story | {"output": STORY + " Amen, amen."}
    return made


def settings(data: Path, **more: Any) -> SelectSettings:
    given = {"dataset": str(data), "model": "pocket", "scorer": ("length",), "keep": "100%", "template": "alpaca"}
    return SelectSettings.of(given | {"drop_near_duplicates": 0.8} | more)


def rows_of(result: Any, data: Path) -> dict[int, str]:
    """Row -> reason, of what was dropped."""
    places = {one.id: one.row for one in library.load(data)}
    return {places[id_]: reason for id_, reason in result.selection.dropped.items()}


def test_the_best_stays_with_the_others_reason(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    result = select(settings(data), folder=tmp_path / "run", output=tmp_path / "kept.jsonl")
    longest = next(one.id for one in library.load(data) if one.row == 9)
    dropped = rows_of(result, data)
    assert set(dropped) == {4, 6, 7} and dropped[4] == "exact duplicate"
    # 9 has all runs of 6 and 7, and ten more at its end.
    assert dropped[6] == dropped[7] and dropped[6].startswith("near-duplicate (0.9") and longest in dropped[6]
    assert result.record["selection"]["dropped"] == {"near-duplicate": 2, "exact duplicate": 1}
    told = json.loads((tmp_path / "run" / "run.json").read_text())["near_duplicates"]
    assert told["threshold"] == 0.8 and told["compared"] == 19 and told["missed_at_threshold"] <= 0.02
    assert [longest in line for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()].count(True) == 2


def test_bottom_keeps_what_it_takes_first(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    dropped = rows_of(select(settings(data, selector="bottom")), data)
    assert set(dropped) == {4, 7, 9}


def test_the_order_of_the_file_does_not_matter(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    back = write_jsonl(tmp_path / "back.jsonl", rows[::-1])
    here, there = select(settings(data)), select(settings(back))
    strip = {id_.partition("-")[0] for id_ in here.kept}
    assert strip == {id_.partition("-")[0] for id_ in there.kept}


def test_the_threshold_decides(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    assert set(rows_of(select(settings(data, drop_near_duplicates=1.0)), data)) == {4, 7}
    assert set(rows_of(select(settings(data, drop_near_duplicates=None, drop_duplicates=True)), data)) == {4}


def test_a_filtered_twin_drops_nobody(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    dropped = rows_of(select(settings(data, drop=("n == 9", "n == 3"))), data)
    assert dropped.pop(9) == "n == 9" and dropped.pop(3) == "n == 3"
    assert len(dropped) == 1 and set(dropped) < {6, 7}  # equal scores: 4 is no duplicate any more


@pytest.mark.slow
def test_a_pipeline_drops_them_in_its_first_stage(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    given = settings(data, scorer=("ifd",), keep="5%", pipeline="length:100% -> random:50%")
    given = SelectSettings.of({**given.model_dump(exclude_unset=True, exclude={"scorer", "keep"})})
    result = select(given)
    counts = result.record["selection"]["dropped"]
    assert [n for reason, n in counts.items() if reason.endswith(": near-duplicate")] == [2], counts


@pytest.mark.parametrize("threshold", [0.3, 1.5])
def test_a_wrong_threshold_stops_before_the_run_folder(rows: Any, tmp_path: Path, threshold: float) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(SettingsError, match=r"0\.5 to 1"):
        select(settings(data, drop_near_duplicates=threshold), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def tithe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


def test_the_command(tithe: Command, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    common = ["select", data, "--scorer", "length", "--model", "pocket", "--keep", "100%", "-o", tmp_path / "k.jsonl"]
    done = tithe.ok(*common, "--drop-near-duplicates", "0.8")
    assert "dropped: near-duplicate" in done.err and len(read_jsonl(tmp_path / "k.jsonl")) == 17
    tithe.fails(*common, "--overwrite", "--drop-near-duplicates", "many", code=2)
    assert "0.5 to 1" in tithe.fails(*common, "--overwrite", "--drop-near-duplicates", "0.1").err
