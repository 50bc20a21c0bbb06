"""A GPU gets its next batch before the current one is waited for; results equal those of reading one by one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.models import load, random_passes
from tithe.engine.engine import Engine, PassResult
from tithe.engine.forward import forward, states
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.forward import counted, runs
from tithe.engine.heads.cnn import CnnHead, expected_shapes
from tithe.engine.heads.probe import ProbeHead
from tithe.engine.readouts import collect, head_readout, weighted
from tithe.engine.readouts.base import READOUTS
from tithe.engine.readouts.collect import MeanStates
from tithe.engine.readouts.head_readout import MarginReadout
from tithe.engine.readouts.options import OptionsReadout, Replies
from tithe.engine.readouts.weighted import Weighted
from tithe.records import Pass

Family = Callable[[str], Path]
NLL = READOUTS["nll"]


def followed(engine: Engine, device: str, batches: int) -> list[str]:
    """Record what is started, waited for and yielded, in order."""
    done: list[str] = []

    def begin(passes: Any, batch: Any, asked: Any) -> Any:
        done.append(f"begin {batch}")
        return lambda: done.append(f"wait {batch}")

    engine.start_batch = begin  # type: ignore[method-assign]
    engine.model = SimpleNamespace(device=torch.device(device))  # type: ignore[assignment]
    for batch, _ in engine.read_one_ahead([], range(batches), []):  # type: ignore[arg-type]
        done.append(f"have {batch}")
    return done


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_a_gpu_has_its_next_batch_before_it_is_waited_for(family: Family, batches: int) -> None:
    done = followed(Engine(load(family("llama"))), "cuda", batches)
    wanted: list[str] = []
    for i in range(batches):
        wanted += [f"begin {i}", *([f"wait {i - 1}", f"have {i - 1}"] if i else [])]
    assert done == [*wanted, *([f"wait {batches - 1}", f"have {batches - 1}"] if batches else [])]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_a_batch_is_handed_on_at_once(family: Family, device: str) -> None:
    done = followed(Engine(load(family("llama"))), device, 2)
    assert done == ["begin 0", "wait 0", "have 0", "begin 1", "wait 1", "have 1"]


@pytest.mark.slow
def test_memory_that_runs_out_while_another_batch_is_under_way(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one ahead on a CPU: a halved batch has its results, and so have those around it."""
    loaded, passes = load(family("llama")), random_passes()
    asked = [(NLL,)] * len(passes)
    engine = Engine(loaded, budget=64, workers=1)
    batches = engine.batches(passes)
    plain: dict[int, Any] = {}
    for batch, read in engine.read(passes, batches, asked):
        plain |= {i: one.nll for i, one in zip(batch.index, read, strict=True)}  # type: ignore[union-attr]
    real, large = type(loaded).start_reading, max(batches, key=lambda batch: len(batch.index))
    assert len(batches) > 2 and len(large.index) > 1

    def short(self: Any, forward_path: str, some: Any, *rest: Any) -> Any:
        if len(some) == len(large.index):
            raise torch.OutOfMemoryError("out of memory")
        return real(self, forward_path, some, *rest)

    monkeypatch.setattr(type(loaded), "start_reading", short)
    coming = [
        (batch, engine.start_batch(passes, batch, asked)) for batch in batches
    ]  # all begun before any is waited for
    found = {i: one.nll for batch, results in coming for i, one in zip(batch.index, results(), strict=True)}  # type: ignore[union-attr]
    assert engine.halved > 0 and found.keys() == plain.keys()
    for i, nll in plain.items():
        np.testing.assert_allclose(found[i], nll, rtol=1e-4, atol=1e-5)


def test_keys_are_what_each_segment_sees_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 9, rng.integers(1, 7)).tolist()
        starts = np.cumsum([0, *lengths])
        before, wanted = [], list[int]()
        for i, length in enumerate(lengths):
            places = np.sort(rng.choice(int(starts[i]), rng.integers(0, starts[i] + 1), replace=False))
            before.append(runs(places))
            wanted += [*places.tolist(), *range(starts[i], starts[i] + length)]
        keys = Cuts(lengths, before).keys
        found = wanted if keys is None else keys.tolist()
        assert found == wanted


def test_counted_numbers_are_shared_and_cannot_be_written_to() -> None:
    for start, stop in ((0, 0), (3, 7), (0, 1 << 15), (32_760, 40_000)):
        assert counted(start, stop).tolist() == list(range(start, stop))
    with pytest.raises(ValueError, match="read-only"):
        counted(0, 5)[0] = 1


def test_what_has_been_read_is_handed_on_before_an_error(family: Family) -> None:
    engine, done = Engine(load(family("llama"))), list[int]()

    def begin(passes: Any, batch: int, asked: Any) -> Any:
        if batch == 2:
            raise RuntimeError("a kernel's")
        return lambda: []

    engine.start_batch = begin  # type: ignore[assignment, method-assign]
    engine.model = SimpleNamespace(device=torch.device("cuda"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="a kernel's"):
        for batch, _ in engine.read_one_ahead([], range(4), []):  # type: ignore[arg-type]
            done.append(batch)  # type: ignore[arg-type]
    assert done == [0, 1]


def test_hidden_states_are_asked_for_when_a_batch_begins_and_waited_for_later(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: no copy is waited for before its batch is, and results equal those of reading one by one."""
    loaded, passes = load(family("llama")), random_passes()
    probe = ProbeHead(torch.arange(64.0).reshape(2, 32) / 64, torch.tensor(0.5), (1, 2), 3, 32)
    readouts = (NLL, MeanStates(), Weighted(), MarginReadout(probe, "probe"), MarginReadout(some_network(), "network"))
    asked, engine = [readouts] * len(passes), Engine(loaded, budget=64, workers=1)
    batches = engine.batches(passes)
    plain: dict[int, Any] = {}
    for batch, read in engine.read(passes, batches, asked):
        plain |= dict(zip(batch.index, read, strict=True))
    copies, waited = list[torch.Tensor](), list[int]()

    def copied(values: torch.Tensor) -> Callable[[], Any]:
        number, host = len(copies), values.clone()
        copies.append(host)

        def wait() -> Any:
            waited.append(number)
            return host.numpy()

        return wait

    for module in (collect, forward, head_readout, states, weighted):
        monkeypatch.setattr(module, "start_fetch", copied)
    coming, had = [], [0]
    for batch in batches:
        coming.append((batch, engine.start_batch(passes, batch, asked)))
        had.append(len(copies))
    assert len(batches) > 2 and not waited
    assert np.diff(had).tolist() == [9] * len(batches)  # likelihoods; of four readers what they made, and what is odd
    for number, (batch, results) in enumerate(coming):
        for i, one in zip(batch.index, results(), strict=True):
            assert isinstance(one, PassResult) and one.found.keys() == plain[i].found.keys() and len(one.found) == 4
            for name, value in one.found.items():
                np.testing.assert_array_equal(value, plain[i].found[name])
            np.testing.assert_array_equal(one.nll, plain[i].nll)
        assert sorted(waited) == [*range(had[number + 1])] and len(copies) == had[-1]


def some_network() -> CnnHead:
    draw = torch.Generator().manual_seed(3)
    shapes = expected_shapes(3, 32)
    return CnnHead({name: torch.randn(shape, generator=draw) / 30 for name, shape in shapes.items()}, (0, 1, 2), 3, 32)


def test_what_waits_for_hidden_states_keeps_no_reader(family: Family) -> None:
    """A reader must be freed, as it holds device memory that the next batch needs before this one is waited for."""
    loaded, first = load(family("llama")), np.array([7], dtype=np.int32)
    some = [Pass(np.append(np.arange(n), first).astype(np.int32), n) for n in (3, 5)]
    probe = ProbeHead(torch.arange(64.0).reshape(2, 32) / 64, torch.tensor(0.5), (1, 2), 3, 32)
    readouts = [MeanStates(), Weighted(), MarginReadout(probe, "probe"), MarginReadout(some_network(), "network")]
    readouts.append(OptionsReadout(Replies(first, 0, (5, 7))))
    taps = states.make_taps(some, [readouts] * 2, loaded.reader_context)
    with torch.inference_mode():
        for tap in taps:
            tap.place([np.arange(4), np.arange(4, 10)], loaded.device)
            for layer in range(3):
                tap.take(layer, torch.ones(10, 32))
        coming = [tap.results("fp32") for tap in taps]
    held = [weakref.ref(one) for tap in taps for one in (tap, tap.reader)]
    taps.clear()
    del tap
    gc.collect()
    assert len(held) == 10 and not any(one() for one in held)
    assert all(results().keys() == {0, 1} for results in coming)
