"""A sample that is read as a run would read it: worked examples, the time of scores, memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.e2e.command import records, write_jsonl
from tithe.engine.batches import find_stars
from tithe.lab.speed import sample as speed_sample
from tithe.lab.speed.sample import Sample, prepare_scorers, working_shape
from tithe.lab.speed.settings import BenchSettings
from tithe.records import Example
from tithe.report.reporter import Reporter
from tithe.run.engines import make_engine
from tithe.run.method import set_up


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", records(40))


def sample_of(data: Path, model_dir: Path, place: Path, scorer: str, count: int) -> Sample:
    """Of the first records."""
    settings = {"dataset": str(data), "model": str(model_dir), "device": "cpu", "scorer": scorer, "encoder": "tfidf"}
    setup = set_up(BenchSettings.of(settings | {"batch_tokens": 4096, "workers": 1}).job)
    items = list(setup.source.dataset)[:count]
    engine = make_engine(setup.settings, setup.source.dataset, setup.model, place, Reporter(), several=False)
    return Sample(setup, prepare_scorers(setup, items), items, place, working_shape(engine), engine)


def test_a_worked_example_is_read_once_in_a_sample(data: Path, model_dir: Path, tmp_path: Path) -> None:
    """MIWV shows records of the sample, and their own passes are there to be continued; in parts of it, too."""
    sample = sample_of(data, model_dir, tmp_path, "miwv", 10)
    for one in (sample, sample.part(0.4)):
        own = {item.id for item in one.items if isinstance(item, Example)}
        window = one.runner(None, tmp_path).plan(one.items)
        specs = [slot.spec for slots in window.slots for named in slots for slot in named.values()]  # type: ignore[union-attr]
        assert len(own) == len(one.items) and {shot.id for spec in specs for shot in spec.shots} <= own
        stars, _ = find_stars(window.passes)
        shown = sum(1 for passes in window.passes if passes.shots)
        assert shown == len(own) and all(not window.passes[star.members[0]].shots for star in stars)
        saved = sum(star.tokens * (len(star.members) - 1) for star in stars)
        reading = one.read()
        assert saved > 0 and reading.tokens <= reading.planned - saved + len(stars)  # each centre's last token is read


def test_a_small_part_is_asked_as_much_as_the_whole(data: Path, model_dir: Path, tmp_path: Path) -> None:
    part = sample_of(data, model_dir, tmp_path, "nuggets(anchors=12)", 10).part(0.3)
    assert len(part.items) == 3
    for item in part.items:
        assert isinstance(item, Example) and len(part.scorers["nuggets"].asks(item)) in (11, 12)


def test_scores_and_their_table_are_timed(
    data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second whenever it is looked at: one for each of 5 scores, and one for the table."""
    sample = sample_of(data, model_dir, tmp_path, "ifd", 5)
    ticks = itertools.count()
    monkeypatch.setattr(speed_sample, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert sample.read().score_seconds == 5 + 1


def test_memory_of_a_spread_model_is_that_of_all_its_devices(
    data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_of(data, model_dir, tmp_path, "ifd", 3)
    engine, peaks = sample.engine, {0: 70, 1: 5}
    engine.model.model.hf_device_map = {"model": 0, "lm_head": 1}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device.index])
    assert sample.read().peak_bytes == 75
