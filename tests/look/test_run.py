"""Which runs are shown, which of their records, and one sentence for what cannot be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests.e2e.command import Command, write_jsonl
from tests.look.small_run import alpaca, write_run
from tithe.errors import TitheError
from tithe.look import look
from tithe.look.agreement import agreements, top
from tithe.look.finished_run import FinishedRun, is_further
from tithe.look.page_data import numbered, parts_of, prompt_of, shown_places
from tithe.records import Example, Message

nan = float("nan")


@pytest.fixture
def tithe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(
        tmp_path, alpaca(6), {"ifd": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}, ["below the budget"] * 4 + [None] * 2
    )


def change(run: Path, **keys: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | keys))


def nothing_scored(run: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(run / "scores.parquet")
    empty = pa.array([None] * len(table), pa.float64())
    pq.write_table(table.set_column(table.column_names.index("ifd"), "ifd", empty), run / "scores.parquet")


BAD = {
    "no folder": (lambda run: (run / "run.json").rename(run / "x"), "is no run folder: it has no `run.json`"),
    "no record": (lambda run: (run / "run.json").write_text("{}"), "is no record of `score` or `select`"),
    "torn record": (lambda run: (run / "run.json").write_text('{"settings": '), "run.json"),
    "unfinished": (lambda run: change(run, outcome={"status": "interrupted"}), "did not finish: interrupted"),
    "other version": (
        lambda run: change(run, settings={"dataset": "d", "keep": 1, "colour": "red"}, versions={"tithe": "9.9"}),
        "of tithe 9.9, are not known: unknown setting `colour`",
    ),
    "no table": (lambda run: (run / "scores.parquet").unlink(), "scores.parquet` is missing"),
    "torn table": (lambda run: (run / "scores.parquet").write_bytes(b"PAR1"), "scores.parquet` cannot be read"),
    "no scores": (nothing_scored, "has no scores to show"),
    "data gone": (lambda run: (run.parent / "data.jsonl").unlink(), "the data of this run cannot be read"),
    "data changed": (
        lambda run: write_jsonl(run.parent / "data.jsonl", alpaca(5)),
        "has changed since the run in",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_shown_is_one_sentence(run: Path, tithe: Command, spoil: Any, message: str) -> None:
    spoil(run)
    done = tithe.fails("look", run)
    assert message in done.errors[0]
    assert not (run / "look.html").exists()


def test_a_missing_folder_and_a_run_at_work(run: Path, tithe: Command) -> None:
    assert "no run folder" in tithe.fails("look", run / "nowhere").errors[0]
    with FileLock(run / ".lock"):
        assert "a run is at work in" in tithe.fails("look", run).errors[0]
    assert "look.html (6 examples, 0.0 MB)" in tithe.ok("look", run).out


def test_a_page_of_ones_own_is_not_replaced(run: Path, tithe: Command, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    tithe.fails("look", run, "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"
    tithe.ok("look", run, "-o", tmp_path / "page.html", "--overwrite")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["scores.parquet", "run.json", "../data.jsonl"])
def test_a_page_never_replaces_what_it_shows(run: Path, tithe: Command, name: str) -> None:
    before = (run / name).read_bytes()
    tithe.fails("look", run, "-o", run / name, "--overwrite")
    assert (run / name).read_bytes() == before


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    first = look(run).path.read_bytes()
    assert look(run).path.read_bytes() == first


def test_tokens_without_a_model_are_an_error(run: Path) -> None:
    with pytest.raises(TitheError, match="this run read no model"):
        look(run, tokens=3)
    with pytest.raises(TitheError, match="not of -1"):
        look(run, tokens=-1)


def test_a_run_that_took_only_the_tokenizer_shows_tokens(tmp_path: Path, tithe: Command) -> None:
    """Its record has no dtype and no fingerprint of the model, which is read for the page alone."""
    data = write_jsonl(tmp_path / "data.jsonl", alpaca(4))
    tithe.ok("score", data, "--scorer", "length", "--model", "pocket", "--device", "cpu", "-o", tmp_path / "s.parquet")
    assert "dtype" not in json.loads((tmp_path / "s.tithe" / "run.json").read_text())["model"]
    assert "tokens of 3" in tithe.ok("look", tmp_path / "s.tithe", "--tokens", 3).out


def test_a_run_that_chose_nothing_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path, alpaca(6), {"ifd": [0.1, 0.2, nan, 0.4, 0.5, 0.6]}, None)
    assert look(run).records == 6
    assert not FinishedRun.open(run).selects


def test_of_many_all_kept_ones_are_shown_and_each_reason_has_its_share(tmp_path: Path) -> None:
    count = 400
    dropped: list[str | None] = (
        [None] * 10 + ["below the budget"] * 300 + [f"gate: looks like cut (0.{i})" for i in range(90)]
    )
    run = FinishedRun.open(write_run(tmp_path, alpaca(count), {"ifd": [float(i) for i in range(count)]}, dropped))
    places = shown_places(run, most=110)
    shown = [dropped[i] for i in places.shown.tolist()]
    assert shown.count(None) == 10 and shown.count("below the budget") == 100 * 300 // 390
    assert len(shown) - shown.count(None) - shown.count("below the budget") == 100 * 90 // 390
    assert (shown_places(run, most=110).shown == places.shown).all()
    assert len(shown_places(run, most=count).shown) == count
    first = places.first(12)
    ids = places.table.column("id").to_pylist()
    assert set(ids[:10]) < first and len(first) == 12


def test_every_part_of_a_dialogue_is_shown() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}
    prompt = (
        Message("user", "Rain?"),
        Message("assistant", "", reasoning="I must look.", tool_calls=(call,)),
        Message("tool", "no", name="weather", tool_call_id="1"),
    )
    one = Example(
        "a", 0, 3, prompt, Message("assistant", "It is dry.", reasoning="Good."), tools=({"name": "weather"},)
    )
    (tools, schema), *rest = prompt_of(one)
    assert tools == "tools" and json.loads(schema) == [{"name": "weather"}]
    assert rest[:2] == [("user", "Rain?"), ("assistant: thinking", "I must look.")]
    assert rest[2][0] == "assistant: calls" and json.loads(rest[2][1]) == [call] and "Łódź" in rest[2][1]
    assert rest[3:] == [("tool weather", "no")]
    assert parts_of(one.response) == [("assistant: thinking", "Good."), ("assistant", "It is dry.")]
    assert parts_of(Message("assistant", "")) == [("assistant", "")]
    assert parts_of(Message("user", "x" * 20_003))[0][1].endswith("x [… 3 more characters]")


def test_reasons_are_numbered_the_commonest_first_and_rare_ones_together() -> None:
    names, number, counts = numbered(["b", None, "a", "b"])
    assert (names, number, counts) == (["kept", "b", "a"], [1, 0, 2, 1], [1, 2, 1])
    names, number, counts = numbered([str(i) for i in range(50)] + ["0"])
    assert len(names) == 42 and names[-1] == "for another reason" and sum(counts) == 51 and counts[-1] == 10
    assert number[0] == number[50] == 1


def test_agreement_by_hand() -> None:
    scores = {"a": np.array([4.0, 3.0, 2.0, 1.0, nan]), "b": np.array([4.0, 1.0, 3.0, nan, 9.0])}
    assert top(scores["b"], 2).tolist() == [4, 0] and top(scores["b"], 9).tolist() == [4, 0, 2, 1]
    ((aa, ab), (ba, bb)) = agreements(scores, 2)
    assert (aa.overlap, bb.overlap) == (1.0, 1.0) and aa.correlation == pytest.approx(1.0)
    # Tops {0, 1} and {4, 0}; in common three examples with ranks 3, 2, 1 and 3, 1, 2: 1 - 6 * 2 / (3 * 8) = 0.5.
    assert ab.overlap == ba.overlap == 0.5 and ab.correlation == pytest.approx(0.5) and ab.both == 3
    same = agreements({"a": np.array([1.0, 1.0]), "b": np.array([1.0, 2.0])}, 1)
    assert same[0][1].correlation is None


@pytest.mark.parametrize(
    ("name", "further"), [("cpqs_probability", True), ("ifd_residual", False), ("ifd_2", False), ("ifd", False)]
)
def test_further_columns_of_a_scorer(name: str, further: bool) -> None:
    assert is_further(name, name.partition("_")[0]) == further
