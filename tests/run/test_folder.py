"""The run folder."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tithe.errors import OutputError, StoreError
from tithe.run.folder import check_places, default_folder, run_folder


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("k.jsonl", "k.tithe"),
        ("a/k.jsonl.gz", "a/k.tithe"),
        ("a.b/k.v2.parquet", "a.b/k.v2.tithe"),
        ("k", "k.tithe"),
    ],
)
def test_beside_the_output(output: str, folder: str) -> None:
    assert default_folder(Path(output)) == Path(folder)


def hold(path: Path, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    with run_folder(path):
        ready.set()
        go.wait(60)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, go))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StoreError, match="another process"), run_folder(tmp_path / "run"):
            pass
    finally:
        go.set()
        other.join()
    with run_folder(tmp_path / "run") as place:
        assert place == tmp_path / "run"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".run.json.0123abcd.part").write_text("{")
    (tmp_path / ".mine.part").write_text("x")
    with run_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".mine.part"]


def test_a_scratch_folder_goes_away() -> None:
    with run_folder(None) as place:
        assert place.is_dir()
    assert not place.exists()


def test_places_are_compared_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{}\n")
    Path("hard.jsonl").hardlink_to("data.jsonl")
    for same in ("data.jsonl", "./data.jsonl", str(tmp_path / "data.jsonl"), "hard.jsonl"):
        with pytest.raises(OutputError, match="data set itself"):
            check_places(Path(same), True, "data.jsonl", None)
    check_places(Path("other.jsonl"), False, "data.jsonl", None)
    check_places(Path("other.jsonl"), False, "owner/name", Path("run"))


@pytest.mark.parametrize("name", ["tokens.parquet", "run.json", "neighbours.parquet", "probes.parquet"])
def test_what_a_run_writes_itself_is_no_place_for_the_output(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=f"the run folder has its own `{name}`"):
        check_places(tmp_path / name, True, "data.jsonl", tmp_path)
