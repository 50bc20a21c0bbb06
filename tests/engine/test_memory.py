"""Logits are computed a few rows at a time; out of memory halves a batch, and a single pass becomes a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.models import load, make_pass, plain, random_passes, run, twin, worst
from tithe.engine.engine import OUT_OF_MEMORY, Engine, is_out_of_memory
from tithe.engine.forward import output_head
from tithe.engine.forward.output_head import EVEN, HEAD_ROWS, TILE_ROWS, OutputHead
from tithe.engine.loaded_model import LoadedModel
from tithe.errors import ModelError
from tithe.records import Problem

Family = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip garbage collection, which takes a second with pytest and transformers loaded."""
    monkeypatch.setattr("tithe.engine.engine.gc.collect", lambda: 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("tiles", [True, False])
def test_the_head_sees_few_rows_at_a_time(name: str, tiles: bool, family: Family, monkeypatch: Any) -> None:
    loaded = load(family(name))
    rows: list[int] = []
    if tiles:
        tiled = output_head.tiled_nll
        monkeypatch.setattr(
            output_head, "tiled_nll", lambda hidden, *rest: rows.append(len(hidden)) or tiled(hidden, *rest)
        )
    else:
        assert loaded.head is not None
        loaded.head.matrix = None
        loaded.model.get_output_embeddings().register_forward_hook(
            lambda module, given, logits: rows.append(logits.numel() // logits.shape[-1])
        )
    passes = [make_pass(np.arange(100) % 190 + i, 40) for i in range(19)]
    run(Engine(loaded, budget=10_000, workers=1), passes)
    assert 19 * 60 <= sum(rows) < 19 * 60 + EVEN  # response positions alone, filled up
    assert max(rows) == (TILE_ROWS if tiles else HEAD_ROWS)


@contextmanager
def limited(loaded: LoadedModel, tokens: int, error: BaseException) -> Iterator[list[int]]:
    """Raise if a forward pass reads more than so many tokens."""
    assert loaded.head is not None
    seen: list[int] = []

    def check(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append(given["input_ids"].numel())
        if seen[-1] > tokens:
            raise error

    hook = loaded.head.backbone.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_halves_and_goes_on(family: Family, error: BaseException, workers: int) -> None:
    loaded, passes, model = load(family("llama")), random_passes(), plain(family("llama"))
    engine = Engine(loaded, budget=1000, workers=workers)
    with limited(loaded, 130, error):
        got = run(engine, passes)
    assert engine.halved >= 3
    assert 130 < engine.smallest_failed < 260
    assert worst(got, [twin(model, pass_) for pass_ in passes]) < 1e-5


def test_alone_and_still_too_long_is_that_passs_problem(family: Family) -> None:
    loaded = load(family("bloom"))
    passes = [make_pass(range(n), 2) for n in (20, 60, 30, 50)]
    engine = Engine(loaded, budget=1000, workers=1)
    with limited(loaded, 45, MemoryError()):
        found = {i: r for batch, out in engine.run(passes, engine.batches(passes))
                 for i, r in zip(batch.index, out, strict=True)}  # fmt: skip
    assert found[1] == found[3] == OUT_OF_MEMORY == Problem("out of memory at batch size 1")
    assert isinstance(found[0], np.ndarray) and isinstance(found[2], np.ndarray)


def test_what_did_not_fit_is_not_tried_again(family: Family) -> None:
    loaded, passes = load(family("llama")), [make_pass(np.arange(20) + i, 2) for i in range(64)]
    engine = Engine(loaded, budget=320, workers=1)
    with limited(loaded, 130, MemoryError()) as seen:
        run(engine, passes)
    assert len([tokens for tokens in seen if tokens > 130]) == engine.halved == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_other_errors_are_not_swallowed(family: Family, workers: int) -> None:
    loaded = load(family("llama"))
    with (
        limited(loaded, 30, RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
    ):
        run(Engine(loaded, budget=1000, workers=workers), random_passes())


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("memory"))


def test_an_id_beyond_the_embedding_is_named_before_anything_runs(family: Family) -> None:
    engine = Engine(load(family("llama")), workers=1)
    passes = [make_pass([1, 2, 3], 1), make_pass([1, 199], 1)]
    with pytest.raises(ModelError, match=r"the tokenizer gives id 199, but .* embeds 199 ids") as caught:
        run(engine, passes)
    assert (
        caught.value.hint
        == "tokenizer and model do not belong together, or the embedding was not resized for added tokens"
    )


def test_a_head_in_pieces_is_the_head(family: Family) -> None:
    """Check more rows than fit into one piece, with a soft cap."""
    loaded = load(family("gemma2"))
    head = loaded.head
    assert isinstance(head, OutputHead)
    hidden, targets = torch.randn(3 * HEAD_ROWS + 5, 32), torch.randint(0, 199, (3 * HEAD_ROWS + 5,))
    with torch.inference_mode():
        logits = torch.tanh(hidden.double() @ loaded.model.lm_head.weight.double().T / 2.0) * 2.0
        wanted = torch.logsumexp(logits, 1) - logits.gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(head.nll(hidden, targets).double(), wanted, rtol=1e-5, atol=1e-5)
