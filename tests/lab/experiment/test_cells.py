"""A cell that is done stays done wherever its folder lies, and is not taken for one of other examples or settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe.errors import StoreError
from tithe.lab.experiment.arm_choices import Choice
from tithe.lab.experiment.cells import DONE, SPEC, Cell, cell_key, is_finished, prepare, spec_digest, write_done
from tithe.lab.experiment.conduct import earlier_looks

COMMON: dict[str, Any] = {
    "tune": {"learning_rate": 1e-3},
    "evaluation": {"holdout": "here/data/holdout.jsonl", "eos": True},
    "keep_models": True,
}


class Pool:
    def write(self, places: tuple[int, ...], path: Path) -> None:
        path.write_text("".join(f"{place}\n" for place in places))


def cell(places: tuple[int, ...], seed: int = 0) -> Cell:
    choice = Choice("ifd", "5%", None, places)
    return Cell("ifd", "5%", seed, choice, cell_key(choice, seed))


def ready(folder: Path, one: Cell, common: dict[str, Any] = COMMON) -> tuple[Path, bool, list[str]]:
    said: list[str] = []
    own = prepare(one, Pool(), folder, common, said.append)  # type: ignore[arg-type]
    return own, is_finished(one, own, json.loads((own / SPEC).read_text())), said


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A cell that was trained and evaluated."""
    own, finished_before, said = ready(tmp_path / "out", cell((1, 5, 7)))
    assert not finished_before and not said
    (own / "model").mkdir()
    digest = spec_digest(json.loads((own / SPEC).read_text()))
    write_done(own, {"training": None, "evaluation": [], "items": "i", "seconds": 1.0, "spec_digest": digest})
    return tmp_path / "out"


def test_the_same_again_is_done(done: Path) -> None:
    own, is_done, said = ready(done, cell((1, 5, 7)))
    assert is_done and not said and (own / "model").exists()


def test_a_folder_that_was_moved_keeps_what_is_done(done: Path) -> None:
    moved = done.rename(done.parent / "elsewhere")
    there = {**COMMON, "evaluation": {**COMMON["evaluation"], "holdout": str(moved / "data/holdout.jsonl")}}
    own, is_done, said = ready(moved, cell((1, 5, 7)), there)
    assert is_done and not said and (own / "model").exists()


@pytest.mark.parametrize(
    ("places", "common"),
    [
        ((1, 5, 8), COMMON),
        ((1, 5), COMMON),
        ((1, 5, 7), {**COMMON, "tune": {"learning_rate": 2e-3}}),
        ((1, 5, 7), {**COMMON, "evaluation": {**COMMON["evaluation"], "eos": False}}),
    ],
)
def test_other_examples_or_settings_are_done_anew(done: Path, places: tuple[int, ...], common: dict[str, Any]) -> None:
    """As when an arm's scorer is changed in the file: what was trained on another choice is no result of this one."""
    own, is_done, said = ready(done, cell(places), common)
    assert not is_done and not (own / DONE).exists() and not (own / "model").exists()
    assert said == ["ifd-5%-seed0: its examples or settings have changed: it is done again"]
    assert (own / "train.jsonl").read_text().split() == [str(place) for place in places]


def test_another_seed_is_another_cell(done: Path) -> None:
    own, is_done, said = ready(done, cell((1, 5, 7), seed=1))
    assert own.name == "ifd-5%-seed1" and not is_done and not said
    assert ready(done, cell((1, 5, 7)))[1]


@pytest.mark.parametrize("name", [SPEC, DONE])
@pytest.mark.parametrize("raw", [b"", b'{"arm": ', b"[]", b"{}", b"\xff", b'{"spec_digest": 5}'])
def test_a_torn_record_says_so_and_nothing_is_removed(done: Path, name: str, raw: bytes) -> None:
    own = next((done / "cells").iterdir())
    (own / name).write_bytes(raw)
    with pytest.raises(StoreError, match="is damaged") as caught:
        ready(done, cell((1, 5, 7)))
    assert f"`{own / name}`" in str(caught.value) and "delete the file" in str(caught.value.hint)
    assert (own / "model").exists() and (own / DONE).exists()


def test_without_its_settings_a_cell_that_is_done_stays(done: Path) -> None:
    own = next((done / "cells").iterdir())
    (own / SPEC).unlink()
    assert ready(done, cell((1, 5, 7)))[1] and (own / "model").exists()


@pytest.mark.parametrize("raw", ["", "[]", '{"settings": {}}', '{"settings": {"seeds": 5}}'])
def test_a_torn_record_of_earlier_looks(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "experiment.json"
    assert earlier_looks(path, 3) == []
    path.write_text(raw)
    with pytest.raises(StoreError, match="is damaged"):
        earlier_looks(path, 3)
    path.write_text('{"settings": {"seeds": [0, 1, 2]}, "earlier_looks": [2]}')
    assert earlier_looks(path, 5) == [2, 3]
