"""Several processes read what one reads, to the last bit; if one of them ends, the error says so in a sentence."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.command import alive
from tests.engine.heads.test_files import card_of
from tithe.engine.devices import choose_devices
from tithe.engine.engine import Engine, PassResult
from tithe.engine.forward.states import ReaderContext, StateReader
from tithe.engine.heads.files import save_head
from tithe.engine.heads.probe import ProbeHead
from tithe.engine.loading import load_model
from tithe.engine.model_source import ModelSource, find_model
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.engine.readouts.collect import AllStates, MeanStates
from tithe.engine.readouts.head_readout import HeadReadout, MarginReadout
from tithe.engine.readouts.options import OptionsReadout, Replies
from tithe.engine.readouts.weighted import Weighted
from tithe.engine.workers import multi_device
from tithe.engine.workers.child_process import search_path
from tithe.engine.workers.multi_device import MultiDeviceEngine
from tithe.engine.workers.worker_process import LoadRequest, WorkerProcess, WorkerReady
from tithe.errors import ModelError
from tithe.records import Pass, Problem

pytestmark = pytest.mark.slow  # a process has to load torch

NLL = READOUTS["nll"]
HOW = {"dtype": "fp32", "fp32_route": "default"}
REPLY = np.array([11, 5, 9], dtype=np.int32)


@pytest.fixture(scope="module")
def source(model_dir: Path) -> ModelSource:
    return find_model(str(model_dir))


@pytest.fixture(scope="module")
def several(source: ModelSource) -> Iterator[MultiDeviceEngine]:
    engine = MultiDeviceEngine(source, choose_devices("cpu,cpu"), HOW, budget=256)
    yield engine
    engine.close()


def passes(n: int = 60) -> list[Pass]:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 200, size).astype(np.int32) for size in rng.integers(8, 90, n)]
    for ids in made:
        ids[5:8] = REPLY
    return [Pass(ids, 5) for ids in made]


def small_head() -> ProbeHead:
    """Make a head for the tiny model's three hidden states of 32 numbers."""
    return ProbeHead(torch.arange(64.0).reshape(2, 32) / 64, torch.tensor(0.5), (1, 2), 3, 32)


def read(engine: Engine, rows: Sequence[Pass], readouts: Sequence[Readout]) -> list[PassResult | Problem]:
    found: dict[int, PassResult | Problem] = {}
    for batch, results in engine.read(rows, engine.batches(rows), [readouts] * len(rows)):
        assert not found.keys() & set(batch.index)
        found |= zip(batch.index, results, strict=True)
    return [found[i] for i in range(len(rows))]


def ready(engine: MultiDeviceEngine) -> Sequence[WorkerProcess]:
    """Wait until both processes have loaded the model, and return them."""
    for _ in range(3000):
        read(engine, passes(), [NLL])
        if all(one.loaded for one in engine.processes):
            return engine.processes
        time.sleep(0.02)
    raise AssertionError("it takes more than a minute")


def same(one: Any, other: Any) -> bool:
    assert isinstance(one, PassResult) and isinstance(other, PassResult)
    assert one.found.keys() == other.found.keys()
    pairs = [(one.nll, other.nll), *((one.found[name], other.found[name]) for name in one.found)]
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_bit_by_bit_what_one_reads(several: MultiDeviceEngine, source: ModelSource, tmp_path: Path) -> None:
    head = small_head()
    save_head(tmp_path / "head", head, card_of(head))
    readouts = [
        *(NLL, READOUTS["nll_tokens"], Weighted(), MeanStates(), OptionsReadout(Replies(REPLY, 1, (5, 6, 7)))),
        HeadReadout(tmp_path / "head"),
    ]
    one = Engine(load_model(source, device="cpu", **HOW), budget=256, workers=1, threads=1)
    expected = read(one, passes(), readouts)
    for wanted in (readouts, readouts[:1], readouts[2:4]):
        assert len(ready(several)) == 2
        found = read(several, passes(), wanted)
        if wanted is readouts:
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert several.devices == ["cpu", "cpu"] and several.model.forward_path == one.model.forward_path == "packed"
    assert several.model.parameters == one.model.parameters and several.model.vocabulary == one.model.vocabulary


def test_both_are_given_work(several: MultiDeviceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = passes(400)
    given: list[int] = []
    real = WorkerProcess.give
    monkeypatch.setattr(WorkerProcess, "give", lambda self, work: (given.append(self.pid), real(self, work)))
    ready(several)
    given.clear()
    read(several, rows, [NLL])
    counts = [given.count(one.pid) for one in several.processes]
    assert sum(counts) == len(several.batches(rows)) and min(counts) >= len(given) / 5, counts
    assert given[:4] == [one.pid for one in several.processes] * 2  # in turns, not all that there is to the first


def test_a_reading_that_is_broken_off_leaves_nothing_behind(several: MultiDeviceEngine) -> None:
    rows = passes()
    expected = read(several, rows, [NLL])
    reading = several.read(rows, several.batches(rows), [[NLL]] * len(rows))
    next(reading)
    reading.close()
    others = [Pass(row.ids[::-1].copy(), 1) for row in rows[:20]]
    assert not any(same(a, b) for a, b in zip(read(several, others, [NLL]), expected, strict=False))
    assert all(same(a, b) for a, b in zip(read(several, rows, [NLL]), expected, strict=True))


def test_what_cannot_be_sent_is_read_here(several: MultiDeviceEngine) -> None:
    rows = passes(6)
    found = read(several, rows, [AllStates(), MarginReadout(small_head(), "head")])
    assert not several.processes  # they gave way: no device holds the model twice
    for row, one in zip(rows, found, strict=True):
        assert isinstance(one, PassResult)
        assert one.found["states"].shape == (3, row.response_tokens, 32) and isinstance(one.found["head"], float)
    assert several.in_this_process().in_this_process() is several.in_this_process()
    read(several, rows, [NLL])
    assert several.processes


class Breaks(Weighted):
    """A readout whose answers cannot be sent back from a process."""

    name = "breaks"

    def __init__(self, how: str) -> None:
        self.how = how

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        if self.how == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        print("the last straw", flush=True)
        os._exit(3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"the process on `cpu \(1 of 2\)` failed: RuntimeError: CUDA error: an illegal memory access"),
        ("exit", r"the process on `cpu \(1 of 2\)` ended with exit code 3, and its last words were: the last straw"),
    ],
)
def test_what_goes_wrong_in_a_process_is_an_error_here(several: MultiDeviceEngine, how: str, message: str) -> None:
    several.close()  # whatever is under way from before, and the second process
    read(several, passes(3), [NLL])  # one batch, for which one process is enough
    pids = [one.pid for one in several.processes]
    with pytest.raises(ModelError, match=message) as caught:
        read(several, passes(3), [Breaks(how)])
    assert "\n" not in str(caught.value) and caught.value.hint
    assert pids and not several.processes and not any(map(alive, pids))


def test_a_killed_process_is_named(several: MultiDeviceEngine) -> None:
    killed, other = ready(several)
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(ModelError, match=r"the process on `cpu \(1 of 2\)` ended with signal 9 \(SIGKILL\)"):
        read(several, passes(), [NLL])
    assert not alive(killed.pid) and not alive(other.pid)


def test_a_process_on_another_road_is_refused(several: MultiDeviceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    several.close()
    monkeypatch.setitem(several._how, "forward_paths", (("packed", "eager"),))  # where sequences see each other
    with pytest.raises(ModelError, match=r"cannot be read on `cpu` as on other devices: packed \(eager\): off by"):
        read(several, passes(3), [NLL])
    assert not several.processes


def test_a_model_that_cannot_be_loaded(source: ModelSource, tmp_path: Path) -> None:
    gone = ModelSource("gone", tmp_path)
    with pytest.raises(ModelError, match=r"cannot read `config\.json` of model `gone`"):
        MultiDeviceEngine(gone, choose_devices("cpu,cpu"), HOW)


def test_the_end_of_the_engine_is_that_of_its_processes(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(source, device="cpu", **HOW)
    closed: list[str] = []

    class Stand:
        def __init__(self, name: str, load: LoadRequest) -> None:
            self.name = name

        def receive(self) -> WorkerReady:
            own = (model.dtype, model.fingerprint, model.forward_path, model.implementation, model.fallbacks)
            return WorkerReady(
                *own, model.single_above, model.fp32, model.vocabulary, model.parameters, 256, 1, 1, False, {}, []
            )

        def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setattr(multi_device, "WorkerProcess", Stand)
    engine = MultiDeviceEngine(source, choose_devices("cpu,cpu"), HOW)
    assert (engine.budget, engine.workers, closed) == (256, 1, [])
    del engine
    assert closed == ["cpu (1 of 2)"]


def test_processes_find_the_same_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", ["", "/a"])
    monkeypatch.chdir(tmp_path)
    assert search_path() == f"{tmp_path}{os.pathsep}/a"
