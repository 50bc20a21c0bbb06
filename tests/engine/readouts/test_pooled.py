"""Hidden states read in a batch are those of the model's own forward, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.models import EACH_FAMILY, LIMIT, VOCABULARY, load, plain
from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.readouts.pooled import PooledReader, pooled_vectors
from tithe.errors import ModelError
from tithe.records import Pass

REMEMBERS = {"llama-dynamic", "llama-longrope", "phi3-longrope"}  # the twin is loaded afresh for every sequence
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 33, 34, 55, 60, 60, 1)
FEW = (1, 7, 40, 2, 33)


def random_rows(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def twin(model: Any, ids: npt.NDArray[np.int32], pooling: str = "mean") -> npt.NDArray[np.float64]:
    """Pool token by token in float64, from the hidden states of the model's own forward."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids.tolist()]), output_hidden_states=True).hidden_states[-1][0].double()
    if pooling == "last":
        return states[len(ids) - 1].numpy()
    total = torch.zeros(states.shape[1], dtype=torch.float64)
    for place in range(len(ids)):
        total = total + states[place]
    return (total / len(ids)).numpy()


def collect(
    engine: Engine, rows: Sequence[npt.NDArray[np.int32]], have: Sequence[bool] | None = None, pooling: Any = "mean"
) -> dict[int, npt.NDArray[np.float32]]:
    found: dict[int, npt.NDArray[np.float32]] = {}
    for index, vectors in pooled_vectors(engine, rows, have or [False] * len(rows), pooling=pooling):
        assert vectors is not None and vectors.dtype == np.float32 and len(vectors) == len(index)
        assert not set(index) & set(found)
        found |= dict(zip(index, vectors, strict=True))
    return found


def off(got: dict[int, npt.NDArray[np.float32]], wanted: Sequence[npt.NDArray[np.float64]]) -> float:
    """Return the largest difference of a vector, as a share of its length."""
    assert sorted(got) == list(range(len(wanted)))
    return max(float(np.linalg.norm(got[i] - row) / np.linalg.norm(row)) for i, row in enumerate(wanted))


@pytest.fixture(scope="module")
def llama(family: Callable[[str], Path]) -> LoadedModel:
    return load(family("llama"))


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_every_family_on_its_forward_path(name: str, family: Callable[[str], Path]) -> None:
    loaded, rows, model = load(family(name)), random_rows(FEW), plain(family(name))
    wanted = [twin(plain(family(name)) if name in REMEMBERS else model, ids) for ids in rows]
    assert off(collect(Engine(loaded, budget=80, workers=1), rows), wanted) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("forward_path", ["packed", "padded", "single", "own forward"])
def test_all_forward_paths_give_the_same(forward_path: str, pooling: str, family: Callable[[str], Path]) -> None:
    loaded, rows = load(family("llama")), random_rows()
    if forward_path != "packed":
        loaded.model.set_attn_implementation("sdpa")
        loaded.forward_path = "single" if forward_path == "own forward" else forward_path
    if forward_path == "own forward":
        loaded.head = None
    wanted = [twin(plain(family("llama")), ids, pooling) for ids in rows]
    assert off(collect(Engine(loaded, budget=100, workers=1), rows, pooling=pooling), wanted) < 1e-5


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    budget=st.sampled_from([1, 7, 64, 10_000]),
    workers=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)
def test_any_company(llama: LoadedModel, lengths: list[int], budget: int, workers: int, seed: int) -> None:
    rows = random_rows(lengths, seed)
    alone = [collect(Engine(llama, workers=1), [ids])[0].astype(np.float64) for ids in rows]
    assert off(collect(Engine(llama, budget=budget, workers=workers), rows), alone) < 1e-5


def test_scalings_that_look_at_the_length_read_long_ones_alone(family: Callable[[str], Path]) -> None:
    rows = random_rows((LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 9, 50, LIMIT, 5))
    wanted = [twin(plain(family("llama-dynamic")), ids) for ids in rows]
    engine = Engine(load(family("llama-dynamic")), budget=10_000)
    assert off(collect(engine, rows), wanted) < 1e-5
    assert off(collect(engine, rows[::-1]), wanted[::-1]) < 1e-5


def test_what_is_there_is_not_read_again_and_moves_nothing(llama: LoadedModel) -> None:
    engine, rows = Engine(llama, budget=64, workers=1), random_rows()
    whole = collect(engine, rows)
    batches = [set(batch.index) for batch in engine.batches([Pass(ids, 0) for ids in rows])]
    assert len(batches) > 3
    have = [i in batches[0] | batches[2] for i in range(len(rows))]
    rest = collect(engine, rows, have)
    assert set(rest) == {i for i, there in enumerate(have) if not there}
    assert all((rest[i] == whole[i]).all() for i in rest)
    assert collect(engine, rows, [True] * len(rows)) == {}


@pytest.mark.parametrize(("dtype", "exact"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_the_mean_of_half_precision_states_is_taken_in_fp32(dtype: torch.dtype, exact: float) -> None:
    states = torch.randn(777, 32, generator=torch.Generator().manual_seed(0)).add(3).to(dtype)
    reader = PooledReader([777])
    reader.take(0, states)
    (vector,) = reader.results()()
    wanted = states.double().mean(0).numpy()
    assert np.abs(vector / wanted - 1).max() < exact / 100


def test_bf16_is_near_fp32(family: Callable[[str], Path]) -> None:
    rows = random_rows(FEW)
    wanted = [twin(plain(family("llama")), ids) for ids in rows]
    assert off(collect(Engine(load(family("llama"), "bf16"), budget=80, workers=1), rows), wanted) < 0.05


@pytest.mark.slow
def test_out_of_memory_halves_and_goes_on(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, real, sizes = random_rows(), Engine.run_forward, list[int]()
    wanted = collect(Engine(llama, workers=1), rows)

    def small(self: Engine, some: Any, *more: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 2 or any(len(pass_.ids) == 55 for pass_ in some):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, some, *more)

    monkeypatch.setattr(Engine, "run_forward", small)
    engine = Engine(llama, budget=10_000, workers=1)
    found = dict(pair for pair in pooled_vectors(engine, rows, [False] * len(rows)))
    assert sizes[0] == len(rows)
    assert found.pop((LENGTHS.index(55),)) is None
    got: dict[int, npt.NDArray[np.float32]] = {}
    for index, vectors in found.items():
        assert vectors is not None
        got |= dict(zip(index, vectors, strict=True))
    assert sorted(got) == [i for i, length in enumerate(LENGTHS) if length != 55]
    assert all(np.allclose(got[i], wanted[i], rtol=1e-4, atol=1e-5) for i in got)


def test_other_errors_are_not_swallowed(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Engine, "run_forward", broken)
    for workers in (1, 2):
        with pytest.raises(RuntimeError, match="shapes"):
            collect(Engine(llama, budget=20, workers=workers), random_rows())


def test_an_id_that_the_model_does_not_embed(llama: LoadedModel) -> None:
    rows = [*random_rows(FEW), np.array([VOCABULARY], dtype=np.int32)]
    with pytest.raises(ModelError, match=f"id {VOCABULARY}"):
        collect(Engine(llama, workers=1), rows)


def test_a_model_that_keeps_its_states_to_itself(family: Callable[[str], Path]) -> None:
    loaded = load(family("llama"))
    real = loaded.model.forward
    loaded.head, loaded.forward_path = None, "single"
    loaded.model.forward = lambda **more: type("Out", (), {"logits": real(**more).logits})()
    with pytest.raises(ModelError, match="does not return its hidden states"):
        collect(Engine(loaded, workers=1), [np.arange(3, dtype=np.int32)])


def test_stopping_early_leaves_the_threads_as_they_were(llama: LoadedModel) -> None:
    before = torch.get_num_threads()
    stream = pooled_vectors(Engine(llama, budget=20, workers=2), random_rows(), [False] * len(LENGTHS))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before
