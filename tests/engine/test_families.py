"""Every family's numbers are those of its own forward, token by token, on whichever forward path it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.models import (
    CONFIGS,
    EACH_FAMILY,
    LIMIT,
    VOCABULARY,
    load,
    make_pass,
    plain,
    random_passes,
    run,
    twin,
    worst,
)
from tithe.engine.engine import Engine

PADDED = {"gptj", "gpt-neo", "falcon", "falcon-alibi", "bloom", "mamba", "recurrent-gemma"}
KEEPS = {
    "recurrent-gemma": "`recurrent_states` of `model.layers.0.temporal_block.rg_lru`",
    **dict.fromkeys(["llama-longrope", "phi3-longrope"], "`long_inv_freq` of `model.rotary_emb`"),
}
REMEMBERS = {"llama-dynamic"}  # the rotary scaling keeps the longest sequence it met: the twin is loaded afresh


@pytest.mark.parametrize("name", CONFIGS)
def test_engine_equals_the_models_own_forward(name: str, family: Callable[[str], Path]) -> None:
    loaded = load(family(name))
    assert loaded.forward_path == ("padded" if name in PADDED else "packed"), loaded.fallbacks
    assert loaded.keeps == KEEPS.get(name)
    passes = random_passes()
    model = plain(family(name))
    wanted = [twin(plain(family(name)) if name in REMEMBERS else model, pass_) for pass_ in passes]
    assert worst(run(Engine(loaded, budget=150, workers=1), passes), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH_FAMILY)
def test_in_bf16_it_is_off_from_the_models_own_bf16_by_rounding(name: str, family: Callable[[str], Path]) -> None:
    """Also check that the distance from fp32 is hardly more than the model's own."""
    loaded, passes = load(family(name), "bf16"), random_passes(longest=100)
    got = run(Engine(loaded, budget=150, workers=2), passes)
    own, exact = (
        [twin(plain(family(name), dtype) if name in REMEMBERS else model, pass_) for pass_ in passes]
        for dtype, model in ((dtype, plain(family(name), dtype)) for dtype in (torch.bfloat16, torch.float32))
    )
    assert worst(got, own) < 2e-2
    assert worst(got, exact) < 1.5 * worst([np.array(one, dtype=np.float32) for one in own], exact) + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH_FAMILY)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 99), st.integers(0, 2)), min_size=1, max_size=10),
    budget=st.sampled_from([1, 30, 200, 10_000]),
    workers=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_any_shapes_of_any_family(
    name: str,
    family: Callable[[str], Path],
    shape: list[tuple[int, int, int]],
    budget: int,
    workers: int,
    seed: int,
) -> None:
    """Long and short passes, with one of two prefixes or none, in packs of any size, in parallel or not."""
    loaded, rng = load(family(name)), np.random.default_rng(seed)
    common = rng.integers(0, VOCABULARY, (2, 100))
    common[1, :30] = common[0, :30]
    passes = []
    for length, start, behind in shape:
        ids = rng.integers(0, VOCABULARY, length)
        start = min(start, length - 1)
        if behind:
            ids[:start] = common[behind - 1, :start]
        passes.append(make_pass(ids, start))
    model = plain(family(name))
    wanted = [twin(plain(family(name)) if name in REMEMBERS else model, pass_) for pass_ in passes]
    assert worst(run(Engine(loaded, budget=budget, workers=workers), passes), wanted) < 1e-5


def test_a_model_that_keeps_its_state_has_one_pass_under_way(family: Callable[[str], Path]) -> None:
    """Two threads would continue from each other's state."""
    engine = Engine(load(family("recurrent-gemma")), budget=60, workers=3)
    assert engine.workers == 1 and engine.facts["keeps"] == KEEPS["recurrent-gemma"]
    assert Engine(load(family("llama")), budget=60, workers=3).workers == 3


@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope"])
def test_scalings_that_look_at_the_length_read_such_sequences_alone(name: str, family: Callable[[str], Path]) -> None:
    loaded = load(family(name))
    engine = Engine(loaded, budget=10_000, workers=2)
    assert loaded.single_above == LIMIT
    assert engine.workers == 1  # they keep state: threads would meet each other's
    lengths = [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 50, LIMIT, 60, 40, LIMIT - 1]
    passes = [make_pass(list(range(i, i + n)), 3) for i, n in enumerate(lengths)]
    for batch in engine.batches(passes):
        assert len(batch.index) == 1 or all(len(passes[i].ids) <= LIMIT for i in batch.index)
    wanted = [twin(plain(family(name)), pass_) for pass_ in passes]
    assert worst(run(engine, passes), wanted) < 1e-5
    assert worst(run(engine, passes[::-1]), wanted[::-1]) < 1e-5


def test_a_token_alone_predicts_nothing(family: Callable[[str], Path]) -> None:
    for name in ("llama", "bloom"):
        engine = Engine(load(family(name)), workers=1)
        assert [len(nll) for nll in run(engine, [make_pass([5], 0), make_pass([7], 0)])] == [0, 0]
        assert [len(nll) for nll in run(engine, [make_pass([5], 0), make_pass([7, 8, 9], 0)])] == [0, 2]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba"])
def test_no_forward_path_keeps_memory_of_what_it_read(name: str, family: Callable[[str], Path]) -> None:
    engine = Engine(load(family(name)), budget=150, workers=1)
    passes = random_passes(12)
    first, again = run(engine, passes), run(engine, passes)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_what_fills_a_pack_up_does_not_switch_a_scaling(family: Callable[[str], Path]) -> None:
    """One pass of 5 tokens is padded with more tokens than the scaling's limit."""
    loaded, model = load(family("llama-longrope")), plain(family("llama-longrope"))
    passes = [make_pass(range(7, 7 + n), 1) for n in (5, 3, LIMIT)]
    assert worst([loaded.nll([pass_])[0] for pass_ in passes], [twin(model, pass_) for pass_ in passes]) < 1e-5
