"""Answers of another run folder are used if asked for, suggested if not, and never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import records, write_jsonl
from tithe.errors import SettingsError, StoreError
from tithe.report.reporter import Reporter
from tithe.run.score import score
from tithe.settings import ScoreSettings


class Told(Reporter):
    def __init__(self) -> None:
        self.said = list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def scored(model_dir: Path, tmp_path: Path) -> Any:
    """Score a few records into a run folder: passes computed, scores, and notes."""
    data = write_jsonl(tmp_path / "data.jsonl", records(5))

    def run(name: str, **given: Any) -> tuple[int, list[float], list[str]]:
        told = Told()
        values = {"dataset": str(data), "model": str(model_dir), "dtype": "fp32", "device": "cpu", **given}
        done = score(ScoreSettings.of(values), folder=tmp_path / name, reporter=told)
        notes = [text for text in told.said if "answers of this model" in text]
        return done.record["work"]["passes_computed"], done.scores().values.tolist(), notes

    return run


def test_another_folders_answers_are_named_and_used(scored: Any, tmp_path: Path) -> None:
    first, before = scored("first.tithe"), tmp_path / "first.tithe"
    assert first[0] == 10 and first[2] == []
    kept = {path: path.read_bytes() for path in before.rglob("part-*")}
    computed, values, notes = scored("second.tithe")
    assert (computed, values) == (10, first[1])
    assert notes == [f"note: `{before}` has answers of this model on this data: `--answers {before}` uses them"]
    computed, values, notes = scored("third.tithe", answers=str(before))
    assert (computed, values, notes) == (0, first[1], [])
    assert {path: path.read_bytes() for path in before.rglob("part-*")} == kept
    assert not list((tmp_path / "third.tithe").rglob("part-*"))  # they were read, and not copied


def test_other_data_or_another_model_is_not_named(scored: Any, tmp_path: Path) -> None:
    scored("first.tithe")
    other = write_jsonl(tmp_path / "other.jsonl", records(3))
    assert scored("second.tithe", dataset=str(other))[2] == []
    assert scored("third.tithe", dtype="bf16")[2] == []
    note = f"note: `{tmp_path / 'third.tithe'}` has no answers of this model in fp32"
    assert scored("fourth.tithe", answers=str(tmp_path / "third.tithe"))[2] == [note]


def test_a_damaged_part_of_another_folder_is_named(scored: Any, tmp_path: Path) -> None:
    scored("first.tithe")
    part = next((tmp_path / "first.tithe").rglob("part-*"))
    raw = part.read_bytes()
    part.write_bytes(raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:])
    with pytest.raises(StoreError, match="is damaged"):
        scored("second.tithe", answers=str(tmp_path / "first.tithe"))


@pytest.mark.parametrize(("name", "what"), [("none", "there is no folder"), (".", "no answers are in")])
def test_what_is_no_run_folder(scored: Any, tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        scored("first.tithe", answers=str(tmp_path / name))
