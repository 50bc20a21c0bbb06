"""Hidden states of all layers, read batched, are those that transformers gives for one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.engine.models import (
    EACH_FAMILY,
    LIMIT,
    VOCABULARY,
    load,
    make_pass,
    plain,
    random_passes,
    shown_passes,
    twin,
)
from tithe.engine.batches import Batch
from tithe.engine.engine import Engine, PassResult
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.engine.readouts.collect import AllStates, MeanStates
from tithe.errors import ModelError
from tithe.records import Pass, Problem

REMEMBERS = {"llama-dynamic", "llama-longrope", "phi3-longrope"}  # the twin is loaded afresh for every sequence
NLL = READOUTS["nll"]


def states_of(model: Any, pass_: Pass) -> npt.NDArray[np.float64]:
    """Return the states as transformers keeps them: (layers, response tokens, dim)."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([pass_.ids.tolist()]), output_hidden_states=True).hidden_states
    return np.stack([layer[0, pass_.start :].double().numpy() for layer in found])


def read(engine: Engine, passes: Sequence[Pass], asked: Sequence[Sequence[Readout]]) -> list[PassResult]:
    found: dict[int, PassResult] = {}
    for batch, results in engine.read(passes, engine.batches(passes), asked):
        for i, result in zip(batch.index, results, strict=True):
            assert i not in found and not isinstance(result, Problem), result
            found[i] = result
    return [found[i] for i in range(len(passes))]


def off(one: Any, other: Any) -> float:
    one, other = (np.asarray(x, dtype=np.float64) for x in (one, other))
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())


def few() -> list[Pass]:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, VOCABULARY, n) for n in (2, 9, 40, 1, 25, 26)]
    rows[4][:20] = rows[5][:20] = rows[2][:20]
    return [make_pass(row, start) for row, start in zip(rows, (1, 0, 22, 0, 21, 24), strict=True)]


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_every_family_gives_the_states_of_all_layers(name: str, family: Callable[[str], Path]) -> None:
    loaded, passes, model = load(family(name)), few(), plain(family(name))
    got = read(Engine(loaded, budget=80, workers=1), passes, [(NLL, AllStates())] * len(passes))
    for pass_, one in zip(passes, got, strict=True):
        own = plain(family(name)) if name in REMEMBERS else model
        assert off(one.found["states"].numpy(), states_of(own, pass_)) < 1e-5
    if name == "llama":
        assert loaded.layers.hooked and loaded.forward_path == "packed"


@pytest.mark.slow
@pytest.mark.parametrize("forward_path", ["packed", "padded", "single", "own forward"])
@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_all_forward_paths_give_the_same(
    forward_path: str, hooked: bool, workers: int, family: Callable[[str], Path]
) -> None:
    loaded, passes, model = load(family("llama")), random_passes(), plain(family("llama"))
    assert loaded.layers.hooked
    loaded.layers.hooked = hooked
    if forward_path != "packed":
        loaded.model.set_attn_implementation("sdpa")
        loaded.forward_path = "single" if forward_path == "own forward" else forward_path
    if forward_path == "own forward":
        loaded.head = None
    got = read(Engine(loaded, budget=100, workers=workers), passes, [(NLL, AllStates())] * len(passes))
    for pass_, one in zip(passes, got, strict=True):
        assert off(one.found["states"].numpy(), states_of(model, pass_)) < 1e-5
        np.testing.assert_allclose(one.nll, twin(model, pass_), rtol=1e-4, atol=1e-5)


def test_what_is_not_asked_is_not_read(family: Callable[[str], Path]) -> None:
    loaded, passes = load(family("llama")), random_passes()
    whole, means = AllStates(), MeanStates([1, 2])
    asked = [[(NLL,), (whole,), (NLL, means), ()][i % 4] for i in range(len(passes))]
    got, model = read(Engine(loaded, budget=100, workers=1), passes, asked), plain(family("llama"))
    for i, (pass_, one) in enumerate(zip(passes, got, strict=True)):
        assert set(one.found) == [set(), {"states"}, {"means"}, set()][i % 4]
        assert len(one.nll) == (len(twin(model, pass_)) if i % 4 in (0, 2) else 0)
        if i % 4 == 2:
            assert off(one.found["means"], states_of(model, pass_)[1:].mean(1)) < 1e-5


def test_likelihoods_are_the_same_with_states_and_without(family: Callable[[str], Path]) -> None:
    passes, loaded = random_passes(), load(family("llama"))
    both, alone = (
        read(Engine(loaded, budget=100, workers=1), passes, [asked] * len(passes))
        for asked in ((NLL, MeanStates()), (NLL,))
    )
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-6)


def test_states_of_what_is_read_in_another_pass(family: Callable[[str], Path]) -> None:
    """A shown example's own pass, and those that continue it: states and likelihoods of both."""
    loaded, passes = load(family("llama")), shown_passes(np.random.default_rng(5), 6, 4)
    engine = Engine(loaded, budget=300, workers=1)
    assert any(batch.saved for batch in engine.batches(passes))
    whole = AllStates()
    asked = [(NLL, whole) if i % 3 else (NLL,) if i % 2 else (whole,) for i in range(len(passes))]
    for pass_, each, one in zip(passes, asked, read(engine, passes, asked), strict=True):
        if whole in each:
            assert off(one.found["states"].numpy(), states_of(plain(family("llama")), pass_)) < 1e-5
        if NLL in each:
            np.testing.assert_allclose(one.nll, twin(plain(family("llama")), pass_), rtol=1e-4, atol=1e-5)


def test_a_sequence_too_long_for_company_is_read_whole(family: Callable[[str], Path]) -> None:
    rng = np.random.default_rng(0)
    passes = [make_pass(rng.integers(0, VOCABULARY, n), 3) for n in (LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 9)]
    got = read(Engine(load(family("llama-dynamic"))), passes, [(NLL, AllStates())] * len(passes))
    for pass_, one in zip(passes, got, strict=True):
        assert off(one.found["states"].numpy(), states_of(plain(family("llama-dynamic")), pass_)) < 1e-5


@pytest.mark.parametrize("layer", [0, 1])
def test_states_that_are_not_finite_are_a_problem_that_names_the_layer(
    layer: int, family: Callable[[str], Path]
) -> None:
    loaded = load(family("llama"))
    passes = [make_pass([5, 6, 7], 1), make_pass([9, 8, 4, 3], 1), make_pass([2, 3], 1)]
    engine = Engine(loaded, workers=1)
    assert loaded.layers.hooked
    hand = type(loaded.layers).handing

    def poisoned(self: Any, taker: Any) -> Any:
        def take(number: int, states: torch.Tensor) -> None:
            taker(number, states if number < layer else states.masked_fill(poison(states), float("inf")))

        return hand(self, None if taker is None else take)

    def poison(states: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(states, dtype=torch.bool)
        mask[0, 5, 3] = True  # the first response token of the second sequence
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loaded.layers), "handing", poisoned)
        results = {
            i: one
            for batch, out in engine.read(passes, [Batch((1, 0, 2))], [(NLL, MeanStates())] * 3)
            for i, one in zip(batch.index, out, strict=True)
        }
    bad = results[0]
    assert not isinstance(bad, Problem)
    why = bad.found["means"]
    assert why == Problem(f"hidden states are not finite in fp32: from layer {layer} on; the weights may be damaged")
    for i in (1, 2):
        one = results[i]
        assert not isinstance(one, Problem) and isinstance(one.found["means"], np.ndarray)


def test_a_model_that_hides_its_states(family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: LoadedModel = load(family("llama"))
    real = type(loaded.model).forward

    def silent(self: Any, *args: Any, output_hidden_states: bool = False, **kwargs: Any) -> Any:
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(loaded.model), "forward", silent)
    with pytest.raises(ModelError, match="does not return its hidden states"):
        read(Engine(loaded), few(), [(MeanStates(),)] * 6)


@pytest.mark.slow
def test_running_out_of_memory_halves_the_batch(family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, passes = load(family("llama")), random_passes()
    whole = read(Engine(loaded, workers=1), passes, [(NLL, MeanStates())] * len(passes))
    real = type(loaded).start_reading

    def short(self: Any, forward_path: str, some: Sequence[Pass], *rest: Any) -> Any:
        if len(some) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, forward_path, some, *rest)

    monkeypatch.setattr(type(loaded), "start_reading", short)
    engine = Engine(loaded, workers=1)
    halved = read(engine, passes, [(NLL, MeanStates())] * len(passes))
    assert engine.halved > 0
    for one, other in zip(whole, halved, strict=True):
        np.testing.assert_allclose(one.found["means"], other.found["means"], rtol=1e-4, atol=1e-5)
