"""A bench: numbers that follow from what was measured, on a sample of the user's data, and sentences for bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.engine.measure import machine, matmul
from tithe.errors import DataError, SettingsError
from tithe.lab.speed import speed
from tithe.lab.speed.forecast import BenchResult
from tithe.lab.speed.sample import Sample, TimedReading, spread
from tithe.lab.speed.settings import BenchSettings

READING = TimedReading(seconds=2.0, tokens=100, planned=120, flops=0.0, through=128, peak_bytes=1000, halved=0)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """The machine's peak, worth nothing but measured within milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "ROUND", 1e-5)
        patch.setattr(machine, "SECONDS", 1e-4)
        patch.setattr(machine, "CPU_SQUARE", 32)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", records(40))


@pytest.fixture(scope="module")
def found(quick: None, data: Path, model_dir: Path) -> BenchResult:
    return tithe.bench(data, scorer="ifd", model=str(model_dir), dtype="fp32", device="cpu", limit=10)


def test_its_numbers_follow_from_each_other(found: BenchResult, data: Path, model_dir: Path) -> None:
    record = found.record
    planned = tithe.plan(data, scorer="ifd", model=str(model_dir)).record["counts"]
    assert record["counts"] == planned and record["whole"]["tokens"] == planned["forward_tokens"]
    assert record["sample"]["records"] == 10 and record["sample"]["of"] == 40
    one = record["speed"]
    rates = one["tokens_per_second"]
    assert len(rates) == 3 and one["tokens_per_second_median"] == sorted(rates)[1]
    assert one["spread"] == pytest.approx((max(rates) - min(rates)) / sorted(rates)[1], abs=2e-3)
    # 0.05 GFLOP/s of a toy, rounded to three digits
    assert one["utilisation"] == pytest.approx(one["gflops"] / record["peak"]["gflops"], abs=1e-2)
    assert one["peak_bytes"] > record["whole"]["weight_bytes"]
    whole = record["whole"]
    low, high = whole["seconds_range"]
    assert low <= whole["seconds"] <= high
    beside = max(whole["read_seconds"], whole["tokenise_seconds"])
    assert whole["seconds"] == pytest.approx(whole["load_seconds"] + beside + whole["score_seconds"], abs=0.03)
    assert whole["load_seconds"] > 0 and not whole["scores_overlapped"]


def test_it_reads_with_the_options_that_are_given(data: Path, model_dir: Path) -> None:
    record = tithe.bench(data, model=str(model_dir), device="cpu", limit=4, batch_tokens=300, workers=1).record
    assert (record["engine"]["batch_tokens"], record["engine"]["workers"]) == (300, 1)


def test_it_says_all_of_it(found: BenchResult) -> None:
    text = str(found)
    for word in (
        "machine: cpu",
        "sample: 10 of 40",
        "speed: ",
        "utilisation",
        "whole job",
        "memory",
    ):
        assert word in text
    assert f"{found.record['whole']['tokens']:,} tokens in" in text
    assert all(part in text for part in ("loading ", "reading ", "scores "))


def test_a_sample_larger_than_the_data_takes_what_there_is(data: Path, model_dir: Path) -> None:
    record = tithe.bench(data, model=str(model_dir), device="cpu", limit=1000, workers=1, batch_tokens=512).record
    assert record["sample"]["records"] == 40
    assert "the data set has 40 records, fewer than the 1,000 of a sample" in record["notes"]


def test_an_opened_data_set_keeps_its_own_limit(data: Path, model_dir: Path) -> None:
    opened = tithe.load(data, limit=20)
    record = tithe.bench(opened, model=str(model_dir), device="cpu", limit=5, workers=1, batch_tokens=512).record
    assert record["counts"]["records"] == 20 and record["sample"]["records"] == 5


def test_it_is_written_as_json(found: BenchResult, tmp_path: Path) -> None:
    found.write(tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())["whole"] == found.record["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["miwv", "nuggets", "wici", "selectit", "deita", "ifd,miwv"])
def test_scorers_that_look_at_others_are_measured_too(data: Path, model_dir: Path, scorer: str) -> None:
    found = tithe.bench(
        data, scorer=scorer, model=str(model_dir), device="cpu", limit=8, workers=1, batch_tokens=512, encoder="tfidf"
    )
    assert found.record["sample"]["tokens"] > 0 and found.record["whole"]["seconds"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scorer": "ifd"}, "ifd needs a model"),
        ({"scorer": "idf", "model": "pocket"}, "no scorer `idf`"),
        ({"scorer": "length", "model": "pocket"}, "length reads no model: there is nothing to measure"),
        ({"model": "pocket", "repeats": 2}, "fewer than 3 readings"),
        ({"model": "pocket", "limit": 0}, "`limit` cannot be `0`"),
        ({"model": "pocket", "limit": None}, "a sample needs a size"),
        ({"model": "pocket", "seconds": 0}, "above 0"),
        ({"model": "pocket", "warmup": True}, "a bench trains nothing"),
        ({"model": "pocket", "dtype": "fp8"}, "has none for `fp8`"),
        ({"model": "pocket", "reps": 4}, "unknown setting `reps`"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(data: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tithe.bench(data, **given)


@pytest.mark.parametrize("text", ["", '{"instruction": "a", "output": ""}\n'])
def test_data_without_an_example(tmp_path: Path, model_dir: Path, text: str) -> None:
    (tmp_path / "none.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        tithe.bench(tmp_path / "none.jsonl", model=str(model_dir))


def test_a_sample_of_bad_rows_alone(tmp_path: Path, model_dir: Path) -> None:
    """Of three records the middle one is the sample, and it cannot be read."""
    good, bad = json.dumps(records(1)[0]), '{"instruction": "a", "output": ""}'
    (tmp_path / "most.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(DataError, match=r"none of 1 records of .*most\.jsonl` can be read"):
        tithe.bench(tmp_path / "most.jsonl", model=str(model_dir), limit=1)


@pytest.mark.parametrize(("total", "count", "places"), [(10, 5, [1, 3, 5, 7, 9]), (3, 1, [1]), (2, 9, [0, 1])])
def test_a_sample_is_spread_evenly(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places


def test_a_long_sample_is_made_smaller() -> None:
    """8 records take 4 s: 100 would take 50 s, of which 10 s may be taken."""

    @dataclasses.dataclass(frozen=True)
    class Fake:
        items: list[int]

        def part(self, share: float) -> Fake:
            return Fake(self.items[: round(len(self.items) * share)])

        def read(self) -> TimedReading:
            assert len(self.items) == 8
            return dataclasses.replace(READING, seconds=next(takes))

    settings = BenchSettings(dataset="x", seconds=10)
    takes = iter([5.5, 4.0, 3.9, 4.0])
    made, warming = speed.cut_sample(Fake(list(range(100))), settings)  # type: ignore[arg-type]
    assert len(made.items) == 20 and warming == 1.5
    made, warming = speed.cut_sample(Fake(list(range(16))), settings)  # type: ignore[arg-type]
    assert len(made.items) == 16 and warming == 0


def test_loading_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Fake:
        def get(self, *_: object) -> str:
            now[0] += 7
            return "engine"

    setup = SimpleNamespace(settings=None, source=SimpleNamespace(dataset=None), model=None)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert speed.load_engine(setup, Fake(), tmp_path) == ("engine", 7)  # type: ignore[arg-type]


def test_what_is_slow_beside_the_model_makes_the_job_slow(
    data: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten tokens a second are tokenised, and loading takes an hour."""
    load = speed.load_engine
    monkeypatch.setattr(Sample, "tokenise", lambda self: (100.0, 1000))
    monkeypatch.setattr(speed, "load_engine", lambda *given: (load(*given)[0], 3600.0))
    whole = tithe.bench(data, model=str(model_dir), device="cpu", limit=4, batch_tokens=512, workers=1).record["whole"]
    assert whole["tokenise_seconds"] == whole["tokens"] / 10 and whole["load_seconds"] >= 3600
    assert whole["seconds"] >= 3600 + whole["tokens"] / 10 > 3600 + whole["read_seconds"]
