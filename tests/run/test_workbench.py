"""The workbench of a run, and the stub that a plan uses instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.errors import OutputError, SettingsError
from tithe.planner import Cost
from tithe.records import Ask, Example, Message, Nll
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, EngineLoader
from tithe.run.method import set_up
from tithe.run.score import make_runner
from tithe.run.table import ScoreTable, prompt_key
from tithe.run.workbench import RunBench, is_ours
from tithe.scorers.base import alone, content_of, given, shown
from tithe.settings import ScoreSettings
from tithe.testing.fake_bench import PlanBench


class Listener(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.expected: list[int | None] = []
        self.done_so_far = 0.0

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def expect(self, examples: int | None, *, about: bool = False) -> None:
        self.expected.append(examples)
        self.done_so_far = 0.0

    def progress(self, examples: float, tokens: int) -> None:
        self.done_so_far += examples


@pytest.fixture
def bench(tmp_path: Path, model_dir: Path) -> RunBench:
    data = write_jsonl(tmp_path / "data.jsonl", [*records(12), {"instruction": "x", "output": ""}])
    settings: dict[str, Any] = {"dataset": str(data), "model": str(model_dir), "scorer": "miwv", "dtype": "fp32"}
    setup, reporter = set_up(ScoreSettings.of(settings | {"encoder": "tfidf"})), Listener()
    place = tmp_path / "run"
    place.mkdir()
    load = EngineLoader(EngineCache(reporter), setup.settings, setup.source.dataset, setup.model, place)
    return RunBench(setup, place, make_runner(setup, place, load, reporter), Cost(), reporter, place, who="miwv")


def heard(bench: RunBench) -> Listener:
    assert isinstance(bench.reporter, Listener)
    return bench.reporter


def test_examples_are_there_once_without_columns(bench: RunBench) -> None:
    assert len(bench.examples) == 12 and bench.setup.source.in_memory[1] == 13
    assert all(not example.columns for example in bench.examples)
    assert bench.examples is bench.examples


def test_embedding_is_told_and_stored(bench: RunBench) -> None:
    first = bench.embed(bench.examples, "tfidf")
    assert heard(bench).expected == [12] and heard(bench).done_so_far == 12
    assert bench.facts["encoders"]["tfidf"]["encoded"] == 12
    again = bench.embed(bench.examples[::-1], "tfidf")
    assert np.array_equal(again, first[::-1])
    assert bench.facts["encoders"]["tfidf"]["reused"] == 12
    np.testing.assert_allclose((first.astype(np.float64) ** 2).sum(axis=1), 1, rtol=1e-6)
    found = bench.vectors([bench.examples[3].id, bench.examples[0].id], "tfidf")
    assert np.array_equal(found, first[[3, 0]])


def test_answers_are_read_once_and_counted(bench: RunBench) -> None:
    asks = [{"given": Ask(given(one), "nll"), "alone": Ask(alone(one), "nll")} for one in bench.examples]
    asks += [{"other": Ask(shown(bench.examples[0], [one]), "nll")} for one in bench.examples[1:3]]
    read = bench.answers(asks)
    assert len(read) == 14 and all(isinstance(answer, Nll) for each in read for answer in each.values())
    assert [list(each) for each in read[:2]] == [["given", "alone"]] * 2 and list(read[-1]) == ["other"]
    work = bench.runner.work
    assert (work.passes, work.reused) == (26, 0)
    assert bench.answers(asks) == read and (work.passes, work.reused) == (26, 26)
    assert dict(bench.cost.passes) == {"given": 12, "alone": 12, "shown": 2} and bench.cost.examples == 0
    assert heard(bench).expected == [14, 14] and heard(bench).done_so_far == pytest.approx(14)


def test_tables_are_kept_and_told_from_others(bench: RunBench) -> None:
    bench.keep("near", {"id": ["a", "b"], "n": np.arange(2)})
    path = bench.place / "near.parquet"
    assert pq.read_table(path).to_pylist() == [{"id": "a", "n": 0}, {"id": "b", "n": 1}] and is_ours(path)
    foreign = bench.place / "kept.parquet"
    pq.write_table(pa.table({"id": ["a"]}), foreign)
    (bench.place / "broken.parquet").write_text("no parquet")
    assert not is_ours(foreign) and not is_ours(bench.place / "broken.parquet")
    with pytest.raises(SettingsError, match="two scorers keep a table `near`"):
        bench.keep("near", {"id": []})
    with pytest.raises(OutputError, match="was not written by a run"):
        bench.keep("kept", {"id": []})
    for name in ("scores", "tokens", "../x", "Near", ""):
        with pytest.raises(SettingsError, match="cannot be a table's name"):
            bench.keep(name, {"id": []})
    del bench.tables["near"]
    bench.tidy()
    assert sorted(one.name for one in bench.place.glob("*.parquet")) == ["broken.parquet", "kept.parquet"]


def test_notes_are_by_scorer(bench: RunBench) -> None:
    bench.note("n", 1)
    bench.who = "wici"
    bench.note("n", 2)
    assert bench.facts == {"miwv": {"n": 1}, "wici": {"n": 2}}


def example(name: str) -> Example:
    return Example(name, 0, 1, (Message("user", name),), Message("assistant", "yes"))


def test_a_plan_draws_vectors_by_the_ids() -> None:
    rows = [example(f"{i:x}") for i in range(200)]
    told: list[Any] = []
    one = PlanBench(rows, read=lambda path, what: rows, tables=lambda path: {}, asked=told.extend)
    vectors = one.embed(rows, "self")
    assert np.array_equal(vectors[::-1], one.embed(rows[::-1], "tfidf"))
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-5)
    asks = [{"given": Ask(given(row), "nll"), "alone": Ask(alone(row), "nll")} for row in rows]
    read = one.answers(asks)
    assert told == asks
    assert all(0 < each["given"].mean < each["alone"].mean for each in read)  # type: ignore[union-attr]


@pytest.mark.parametrize(("id_", "content"), [("ab", "ab"), ("ab-2", "ab"), ("pool:ab-1", "ab")])
def test_content_of_an_id(id_: str, content: str) -> None:
    assert content_of(id_) == content


def test_equal_prompts_have_equal_keys() -> None:
    one, other = example("a"), example("a")
    assert prompt_key(one) == prompt_key(Example("z", 9, 3, one.prompt, Message("assistant", "no")))
    assert prompt_key(other) != prompt_key(example("b"))
    assert prompt_key(one) != prompt_key(Example("a", 0, 1, (Message("system", "a"), *one.prompt), one.response))
    assert ScoreTable([], ["prompt"]).extra == {"prompt": []}


def test_without_a_run_folder(tmp_path: Path, model_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(6))
    result = tithe.score(data, scorer="miwv", model=str(model_dir), encoder="tfidf")
    assert result.learned["neighbours"].num_rows == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_more_shots_than_are_looked_at_first(tmp_path: Path, model_dir: Path) -> None:
    """The first hundred records show what a scorer asks; the others are read if these do not suffice."""
    data = write_jsonl(tmp_path / "data.jsonl", records(130))
    planned = tithe.plan(data, scorer="miwv(shots=110)", model=str(model_dir))
    assert planned.record["counts"]["passes"]["shown"] + sum(planned.record["counts"]["problems"].values()) == 130
