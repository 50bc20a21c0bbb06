"""The run folder."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tithe.errors import OutputError, StoreError
from tithe.run.folder import check_places, default_folder, run_folder, write_table


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


def test_the_kept_records_do_not_take_the_place_of_the_scores(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the run folder has its own `scores\.parquet`"):
        check_places(tmp_path / "scores.parquet", True, "data.jsonl", tmp_path)
    check_places(tmp_path / "scores.parquet", True, "data.jsonl", tmp_path, scores=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system that takes no files")
def test_a_folder_that_takes_no_files_is_not_busy() -> None:
    with pytest.raises(OutputError, match="its file system takes no files"), run_folder(Path("/proc")):
        pass


def test_files_that_are_read_are_not_written(tmp_path: Path) -> None:
    model, pool = tmp_path / "model", tmp_path / "pool.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    pool.write_text("{}\n")
    (tmp_path / "hard.jsonl").hardlink_to(pool)
    for output in (model / "config.json", model / "new.jsonl", pool, tmp_path / "hard.jsonl"):
        with pytest.raises(OutputError, match="which is read"):
            check_places(output, True, "data.jsonl", None, ["pocket", str(model), str(pool)])
    check_places(tmp_path / "out.jsonl", True, "data.jsonl", None, ["pocket", str(model), str(pool)])


def test_results_of_another_run_are_not_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with run_folder(tmp_path / name) as place:
            write_table(place / "scores.parquet", pa.table({"x": [1]}))
    with pytest.raises(OutputError, match="belongs to the run in"):
        check_places(tmp_path / "one" / "scores.parquet", True, "data.jsonl", tmp_path / "two")
    check_places(tmp_path / "one" / "scores.parquet", True, "data.jsonl", tmp_path / "one", scores=True)


@pytest.mark.parametrize("name", ["scores.parquet", "tokens.parquet", "dropped.jsonl", "run.json"])
def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}` was not written by a run"), run_folder(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_folder_that_was_copied_without_its_lock_is_one(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"versions": {"tithe": "0.1"}}')
    (tmp_path / "scores.parquet").write_text("")
    with run_folder(tmp_path) as place:
        assert place == tmp_path


def test_parts_of_a_table_make_one_file(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a", None, "c"]), "x": pa.array([1.5, None, float("nan")])})
    for name in ("once", "again"):
        write_table(tmp_path / name, (table.slice(i, 1) for i in range(3)))
    write_table(tmp_path / "whole", table)
    one, whole = (pq.ParquetFile(tmp_path / name) for name in ("once", "whole"))
    assert (one.num_row_groups, whole.num_row_groups) == (3, 1)
    assert one.schema_arrow.equals(whole.schema_arrow, check_metadata=True)
    assert str(one.read().to_pydict()) == str(whole.read().to_pydict()) == str(table.to_pydict())
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()


def test_parts_that_fail_leave_the_file_as_it_was(tmp_path: Path) -> None:
    table = pa.table({"x": [1]})
    write_table(tmp_path / "scores.parquet", table)
    before = (tmp_path / "scores.parquet").read_bytes()

    def parts() -> Iterator[pa.Table]:
        yield table
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_table(tmp_path / "scores.parquet", parts())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
