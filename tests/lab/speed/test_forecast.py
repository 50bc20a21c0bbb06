"""The speed of a sample, and the seconds of the whole job, of the parts that were measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.e2e.command import records, write_jsonl
from tithe.data.render import Renderer
from tithe.lab.speed.forecast import PATIENCE, SampleSpeed, WholeJob, duration, job_parts, tokenising_processes
from tithe.lab.speed.sample import TimedReading
from tithe.lab.speed.settings import BenchSettings
from tithe.run.method import set_up

READING = TimedReading(seconds=2.0, tokens=100, planned=120, flops=4e9, through=128, peak_bytes=1000, halved=0)


def test_a_speed_follows_from_its_readings() -> None:
    """100 tokens in 1, 1.25 and 2 s; 4 GFLOP in the middle one, on a machine of 16 GFLOP/s."""
    speed = SampleSpeed([dataclasses.replace(READING, seconds=s) for s in (1.0, 1.25, 2.0)], peak=16.0)
    assert speed.rates == [100, 80, 50] and speed.spread == 50 / 80
    found = speed.as_dict()
    assert found["tokens_per_second_median"] == 80 and found["gflops"] == 3.2 and found["utilisation"] == 0.2
    assert found["padding"] == pytest.approx(28 / 128, abs=1e-4)


def test_the_spread_is_told_and_doubted() -> None:
    speed = SampleSpeed([dataclasses.replace(READING, seconds=s) for s in (1.0, 1.25, 2.0)], peak=1.0)
    assert any("differ by 62%" in note for note in speed.doubts(10, 1))
    assert any("fills 0.2 batches" in note for note in speed.doubts(512, 1))
    assert list(SampleSpeed([READING] * 3, peak=1.0).doubts(10, 1)) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(9, "9.0 s"), (150, "2.5 min"), (9000, "2.5 h"), (300_000, "3.5 days"), (100, "100.0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("overlapped", "thread", "score", "seconds"),
    [
        (False, 4, 3, 2 + 10 + 3),
        (True, 4, 3, 2 + 10),
        (True, 4, 13, 2 + 13),
        (False, 40, 3, 2 + 20 + 3),
        (True, 40, 3, 2 + 20),
    ],
)
def test_what_goes_on_beside_the_reading_counts_where_it_is_longer(
    overlapped: bool, thread: float, score: float, seconds: float
) -> None:
    """2 s of loading; 1,000 tokens at 50, 100 and 125 a second; tokenising shared by two."""
    whole = WholeJob(2, 1000, (50, 100, 125), thread, 2, score, overlapped).as_dict()
    assert whole["seconds"] == seconds and whole["read_seconds"] == 10 and whole["tokenise_seconds"] == thread / 2
    assert whole["seconds_range"][0] <= seconds <= whole["seconds_range"][1]


def test_the_parts_of_the_whole_job_are_named() -> None:
    def words(overlapped: bool, thread: float, score: float) -> str:
        return job_parts(WholeJob(8.1, 1000, (50, 100, 125), thread, 1, score, overlapped).as_dict())

    assert words(False, 4, 3.2) == "loading 8.1 s, reading 10.0 s, scores 3.2 s"
    assert words(False, 14, 3.2) == "loading 8.1 s, reading 10.0 s, beside it tokenising 14.0 s, scores 3.2 s"
    assert words(True, 4, 3.2) == "loading 8.1 s, reading 10.0 s"
    assert words(True, 4, 12) == "loading 8.1 s, reading 10.0 s, beside it scores 12.0 s"


@pytest.fixture
def renderer(tmp_path: Path, model_dir: Path) -> Renderer:
    data = write_jsonl(tmp_path / "data.jsonl", records(3))
    return set_up(BenchSettings(dataset=str(data), model=str(model_dir)).job).renderer


@pytest.mark.parametrize(
    ("thread", "device", "cores", "processes"),
    [(30, "cuda", 16, 4), (30, "cuda", 3, 2), (30, "cuda", 1, 1), (30, "cpu", 16, 1), (20, "cuda", 16, 1)],
)
def test_processes_tokenise_where_a_run_starts_them(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, thread: float, device: str, cores: int, processes: int
) -> None:
    """Beside 100 s of reading a thread may take 25."""
    monkeypatch.setattr("tithe.engine.host.cpu_cores", lambda: cores)
    assert tokenising_processes(thread, 100, device, renderer) == processes


def test_no_processes_tokenise_a_small_job_or_by_a_renderer_of_others(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tithe.engine.host.cpu_cores", lambda: 16)

    class Own(type(renderer)):  # type: ignore[misc]
        """Of a plugin."""

    assert tokenising_processes(30, 1, "cuda", Own.__new__(Own)) == 1
    assert tokenising_processes(PATIENCE, 1, "cuda", renderer) == 1
