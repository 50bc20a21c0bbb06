"""Every family's numbers are those of its own forward, token by token, on whichever road it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.models import CONFIGS, LIMIT, load, make_pass, plain, random_passes, run, twin, worst
from tithe.engine.engine import Engine

PADDED = {"gptj", "gpt-neo", "falcon", "falcon-alibi", "bloom", "mamba", "recurrent-gemma"}
REMEMBERS = {"llama-dynamic"}  # the rotary scaling keeps the longest sequence it met: the twin is loaded afresh


@pytest.mark.parametrize("name", CONFIGS)
def test_engine_equals_the_models_own_forward(name: str, family: Callable[[str], Path]) -> None:
    loaded = load(family(name))
    assert loaded.road == ("padded" if name in PADDED else "packed"), loaded.fallbacks
    passes = random_passes()
    model = plain(family(name))
    wanted = [twin(plain(family(name)) if name in REMEMBERS else model, pass_) for pass_ in passes]
    assert worst(run(Engine(loaded, budget=150, workers=1), passes), wanted) < 1e-5


@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope"])
def test_scalings_that_look_at_the_length_read_such_sequences_alone(name: str, family: Callable[[str], Path]) -> None:
    loaded = load(family(name))
    engine = Engine(loaded, budget=10_000, workers=2)
    assert loaded.alone_above == LIMIT
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
def test_no_road_keeps_memory_of_what_it_read(name: str, family: Callable[[str], Path]) -> None:
    engine = Engine(load(family(name)), budget=150, workers=1)
    passes = random_passes(12)
    first, again = run(engine, passes), run(engine, passes)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_what_fills_a_pack_up_does_not_switch_a_scaling(family: Callable[[str], Path]) -> None:
    """One pass of 5 tokens is filled up with more tokens than the scaling's limit."""
    loaded, model = load(family("llama-longrope")), plain(family("llama-longrope"))
    passes = [make_pass(range(7, 7 + n), 1) for n in (5, 3, LIMIT)]
    assert worst([loaded.nll([pass_])[0] for pass_ in passes], [twin(model, pass_) for pass_ in passes]) < 1e-5
