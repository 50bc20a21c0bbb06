"""Weighted means of hidden states against the model's own forward, one sequence and one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.engine.models import EACH_FAMILY, VOCABULARY, load, plain
from tests.engine.readouts.test_pooled import REMEMBERS
from tithe.engine.engine import Engine
from tithe.engine.readouts.base import READOUTS, View
from tithe.engine.readouts.weighted import NO_DIRECTION, Weighted, weighted_mean
from tithe.records import Pass, Problem, Vector

LENGTHS = (1, 2, 7, 40, 33, 33, 12)
Read = dict[int, npt.NDArray[np.float32]]


def passes(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Pass]:
    rng = np.random.default_rng(seed)
    return [Pass(rng.integers(0, VOCABULARY, n).astype(np.int32), min(n - 1, 3)) for n in lengths]


def twin(model: Any, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids.tolist()]), output_hidden_states=True).hidden_states[-1][0].double()
    total, weights = torch.zeros(states.shape[1], dtype=torch.float64), range(1, len(ids) + 1)
    for t in weights:
        total = total + t / sum(weights) * states[t - 1]
    return (total / total.norm()).numpy()


def read(engine: Engine, some: Sequence[Pass], nll: bool = False) -> Read:
    readout, found = Weighted(), Read()
    asked = [[readout, READOUTS["nll"]] if nll else [readout]] * len(some)
    for batch, results in engine.read(some, engine.batches(some), asked):
        for i, result in zip(batch.index, results, strict=True):
            assert not isinstance(result, Problem), result
            assert (len(result.nll) > 0) == (nll and len(some[i].ids) > 1)
            row = readout.read(View(some[i], result.nll, result.found["weighted"]))
            assert isinstance(row, dict), row
            answer = readout.answer(row)
            assert isinstance(answer, Vector) and answer.values.dtype == np.float32
            found[i] = answer.values
    assert sorted(found) == list(range(len(some)))
    return found


def off(got: Read, wanted: Sequence[npt.NDArray[Any]]) -> float:
    return max(float(np.linalg.norm(got[i] - row)) for i, row in enumerate(wanted))


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_every_family_on_its_forward_path(name: str, family: Callable[[str], Path]) -> None:
    some, model = passes(), plain(family(name))
    wanted = [twin(plain(family(name)) if name in REMEMBERS else model, one.ids) for one in some]
    assert off(read(Engine(load(family(name)), budget=80, workers=1), some), wanted) < 1e-5


@pytest.mark.parametrize("nll", [False, True])
@pytest.mark.parametrize("forward_path", ["packed", "padded", "single", "own forward"])
def test_all_forward_paths_and_any_batch(forward_path: str, nll: bool, family: Callable[[str], Path]) -> None:
    """Reading likelihoods too changes nothing; and the last token counts although it predicts nothing."""
    loaded, some = load(family("llama")), passes()
    if forward_path != "packed":
        loaded.model.set_attn_implementation("sdpa")
        loaded.forward_path = "single" if forward_path == "own forward" else forward_path
    if forward_path == "own forward":
        loaded.head = None
    wanted = [twin(plain(family("llama")), one.ids) for one in some]
    for budget in (1, 50, 10_000):
        assert off(read(Engine(loaded, budget=budget, workers=1), some, nll), wanted) < 1e-5
    last = [Pass(np.append(one.ids[:-1], (one.ids[-1] + 1) % VOCABULARY).astype(np.int32), one.start) for one in some]
    assert off(read(Engine(loaded, workers=1), last, nll), wanted) > 0.01


def test_a_common_beginning_that_is_read_once_counts_in_each(family: Callable[[str], Path]) -> None:
    """Many sequences that share 40 tokens, which the pack reads once."""
    rng = np.random.default_rng(1)
    shared = rng.integers(0, VOCABULARY, 40)
    rows = [np.concatenate([shared, rng.integers(0, VOCABULARY, 5 + i)]).astype(np.int32) for i in range(6)]
    some, engine = [Pass(row, 40) for row in rows], Engine(load(family("llama")), budget=10_000, workers=1)
    assert any(batch.after for batch in engine.batches(some))
    assert off(read(engine, some), [twin(plain(family("llama")), row) for row in rows]) < 1e-5


@pytest.mark.parametrize(("dtype", "exact"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_states_of_half_precision_are_summed_in_fp32(dtype: torch.dtype, exact: float) -> None:
    states = torch.randn(777, 32, generator=torch.Generator().manual_seed(0)).add(3).to(dtype)
    weights = np.arange(1, 778) / (777 * 778 / 2)
    wanted = (states.double().numpy() * weights[:, None]).sum(axis=0)
    assert np.abs(weighted_mean(states).numpy() / wanted - 1).max() < exact / 100


def test_what_has_no_direction() -> None:
    (one,) = passes((5,))
    nothing = np.empty(0, dtype=np.float32)
    assert Weighted().read(View(one, nothing, np.zeros(4, dtype=np.float32))) == NO_DIRECTION
    why = Problem("hidden states are not finite")
    assert Weighted().read(View(one, nothing, why)) == why
