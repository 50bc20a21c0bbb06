"""Batch, budget, order, workers, padding and shared prefixes change a score by rounding only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.models import (
    LIMIT,
    VOCABULARY,
    load,
    make_pass,
    nested_passes,
    plain,
    random_passes,
    run,
    shown_passes,
    twin,
    worst,
)
from tithe.engine.batches import Batch, make_batches
from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.records import Pass, Problem

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(scope="module")
def models(family: Callable[[str], Path]) -> dict[tuple[str, str], LoadedModel]:
    return {(name, dtype): load(family(name), dtype) for name in ("llama", "bloom") for dtype in TOLERANCE}


def alone(loaded: LoadedModel, passes: list[Pass]) -> list[list[float]]:
    return [loaded.nll([pass_])[0].astype(np.float64).tolist() for pass_ in passes]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_any_budget_order_and_workers(models: dict[tuple[str, str], LoadedModel], name: str, dtype: str) -> None:
    loaded, passes = models[name, dtype], random_passes()
    wanted = alone(loaded, passes)
    for budget in (1, 7, 64, 10_000):
        for workers in (1, 2):
            got = run(Engine(loaded, budget=budget, workers=workers), passes)
            assert worst(got, wanted) < TOLERANCE[dtype], (budget, workers)
    order = np.random.default_rng(1).permutation(len(passes)).tolist()
    got = run(Engine(loaded, budget=64, workers=1), [passes[i] for i in order])
    assert worst(got, [wanted[i] for i in order]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_packed_padded_single_and_shared_beginnings_agree(family: Callable[[str], Path], dtype: str) -> None:
    folder, passes = family("llama"), random_passes()
    packed = load(folder, dtype)
    wanted = alone(packed, passes)
    shared = make_batches(passes, budget=500, share=True)
    assert any(batch.after for batch in shared)
    for batches in (shared, make_batches(passes, budget=500, share=False)):
        got = results(Engine(packed, workers=1), passes, batches)
        assert worst(got, wanted) < TOLERANCE[dtype]
    for forward_path in ("padded", "single"):
        other = load(folder, dtype)
        other.model.set_attn_implementation("sdpa")
        other.forward_path = forward_path
        assert worst(run(Engine(other, budget=300, workers=1), passes), wanted) < TOLERANCE[dtype], forward_path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_a_pass_that_is_the_beginning_of_others(family: Callable[[str], Path], name: str, dtype: str) -> None:
    """Absolute and rotary positions, windows, caps; budgets that cut a star and that do not."""
    loaded, passes = load(family(name), dtype), shown_passes(np.random.default_rng(5), 6, 4)
    assert loaded.forward_path == "packed"
    wanted = alone(loaded, passes)
    for budget in (1, 70, 200, 10_000):
        engine = Engine(loaded, budget=budget, workers=1)
        assert worst(run(engine, passes), wanted) < TOLERANCE[dtype], budget
    batches = Engine(loaded, budget=10_000, workers=1).batches(passes)
    assert any(after and len({one.place for one in after if one}) > 1 for after in (batch.after for batch in batches))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_beginnings_within_beginnings(family: Callable[[str], Path], name: str, dtype: str) -> None:
    """A preamble shared by all, system prompts by some, questions by some of those; budgets that cut each of them."""
    loaded, passes = load(family(name), dtype), nested_passes(np.random.default_rng(6), 10)
    assert loaded.forward_path == "packed"
    wanted = alone(loaded, passes)
    for budget in (1, 130, 300, 10_000):
        engine = Engine(loaded, budget=budget, workers=1)
        assert worst(run(engine, passes), wanted) < TOLERANCE[dtype], budget
    (batch,) = Engine(loaded, budget=10_000, workers=1).batches(passes)
    parents = [None if one is None else one.place for one in batch.after]
    depths = [0 if place is None else 1 for place in parents]
    for k, place in enumerate(parents):
        depths[k] += 0 if place is None else depths[place]
    assert max(depths) >= 3  # preamble, system prompt, question, what is left
    halves = [half for part in batch.halves() for half in part.halves()]
    assert worst(results(Engine(loaded, workers=1), passes, halves), wanted) < TOLERANCE[dtype]


def results(engine: Engine, passes: list[Pass], batches: list[Batch]) -> list[np.ndarray]:
    found = {}
    for batch, nlls in engine.run(passes, batches):
        found |= dict(zip(batch.index, nlls, strict=True))
    assert not any(isinstance(nll, Problem) for nll in found.values())
    return [found[i] for i in range(len(passes))]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.tuples(st.integers(1, 45), st.integers(0, 44), st.booleans()), min_size=1, max_size=12),
    budget=st.sampled_from([1, 7, 64, 10_000]),
    seed=st.integers(0, 100),
)
def test_any_lengths(
    models: dict[tuple[str, str], LoadedModel], shape: list[tuple[int, int, bool]], budget: int, seed: int
) -> None:
    """Passes with and without a shared prefix, short and long, with and without context."""
    loaded, rng = models["llama", "fp32"], np.random.default_rng(seed)
    common = rng.integers(0, VOCABULARY, 45)
    passes = []
    for length, start, sharing in shape:
        ids = rng.integers(0, VOCABULARY, length)
        start = min(start, length - 1)
        if sharing:
            ids[:start] = common[:start]
        passes.append(make_pass(ids, start))
    passes += shown_passes(rng, 3, 3)
    assert worst(run(Engine(loaded, budget=budget, workers=1), passes), alone(loaded, passes)) < 1e-5


def test_two_threads_in_packs_of_their_own(family: Callable[[str], Path]) -> None:
    """The row's cuts are per thread: many small packs at once never use each other's."""
    loaded, passes = load(family("mistral")), random_passes(80, longest=30, seed=4)
    model = plain(family("mistral"))
    wanted = [twin(model, pass_) for pass_ in passes]
    for _ in range(3):
        assert worst(run(Engine(loaded, budget=40, workers=4), passes), wanted) < 1e-5


def test_batches_depend_on_the_passes_alone(family: Callable[[str], Path]) -> None:
    loaded, passes = load(family("llama")), random_passes()
    once, again = (Engine(loaded, budget=64, workers=w).batches(passes) for w in (1, 2))
    assert once == again


def test_stopping_early_leaves_nothing_under_way(family: Callable[[str], Path]) -> None:
    engine, passes = Engine(load(family("llama")), budget=20, workers=2), random_passes()
    stream = engine.run(passes, engine.batches(passes))
    next(stream)
    stream.close()
    assert len(run(engine, passes)) == len(passes)


def test_a_limit_below_the_probes_lengths_is_no_obstacle(family: Callable[[str], Path]) -> None:
    loaded = load(family("phi3-longrope"))
    assert (loaded.forward_path, loaded.single_above) == ("packed", LIMIT)


def test_a_machine_of_many_cores_shares_them_among_few_passes(
    models: dict[tuple[str, str], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models["llama", "fp32"]
    for cores, workers in ((100, 8), (3, 3)):
        monkeypatch.setattr("tithe.engine.engine.cpu_cores", lambda cores=cores: cores)
        assert Engine(loaded).workers == workers
    assert Engine(loaded, workers=20).workers == 20
