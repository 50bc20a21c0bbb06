"""Hidden states instead of likelihoods: token ids in, one vector of each sequence out.

What is read is what the model's own head reads: the backbone's last hidden state, after its final norm. It takes the
road on which `probe.py` found the model's likelihoods true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.copies import to
from tithe.engine.engine import Engine, is_out_of_memory, release
from tithe.engine.forward.attention import segments
from tithe.engine.forward.cuts import Cuts
from tithe.engine.model import LoadedModel
from tithe.errors import ModelError
from tithe.records import IntArray, Pass

NUMERICS = 1  # raise it when a change moves vectors by more than rounding: stored ones are then not met again
EVEN = 64  # a pack is filled up to a multiple of this on a CPU, whose kernels are compiled and kept per shape
Pooling: TypeAlias = Literal["mean", "last"]
Vectors: TypeAlias = npt.NDArray[np.float32]
Found: TypeAlias = tuple[tuple[int, ...], Vectors | None]


def hidden(
    engine: Engine, rows: Sequence[IntArray], have: Sequence[bool], *, pooling: Pooling = "mean"
) -> Iterator[Found]:
    """Read sequences in batches, several batches at once where the engine does so.

    Args:
        engine: a loaded model with its token budget and workers.
        rows: token ids, at least one each.
        have: which are not wanted. Batches are cut from all, so that what is there moves nothing that is not.
        pooling: the mean over a sequence's tokens, or its last token's state.

    Yields:
        Which sequences and their vectors, (sequences, dim) float32, batch by batch as they are done; None where a
        single sequence does not fit into memory.
    """
    passes = [Pass(ids, 0) for ids in rows]
    batches = engine.batches(passes)
    wanted = [index for batch in batches if (index := tuple(i for i in batch.index if not have[i]))]
    if wanted:
        engine.demand_vocabulary(passes, batches)
        engine.settle(passes, batches)
    with engine.own_threads():
        if engine.workers == 1:
            for index in wanted:
                yield from read(engine.model, rows, index, pooling)
            return
        with ThreadPoolExecutor(engine.workers, initializer=engine.take_threads) as pool:
            try:
                for done in as_completed([pool.submit(read, engine.model, rows, i, pooling) for i in wanted]):
                    yield from done.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def read(model: LoadedModel, rows: Sequence[IntArray], index: tuple[int, ...], pooling: Pooling) -> list[Found]:
    """One batch; out of memory halves it and goes on."""
    try:
        return [(index, together(model, [rows[i].astype(np.int64) for i in index], pooling))]
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release(model.device)  # outside the handler: the traceback, and with it the activations, is gone
    if len(index) == 1:
        return [(index, None)]
    middle = len(index) // 2
    return read(model, rows, index[:middle], pooling) + read(model, rows, index[middle:], pooling)


def together(model: LoadedModel, rows: Sequence[npt.NDArray[np.int64]], pooling: Pooling) -> Vectors:
    """The sequences' vectors on the model's road: (sequences, dim)."""
    if model.alone_above is not None:
        model.forget()
    with torch.inference_mode():
        if model.road == "packed":
            parts = packed(model, rows)
        elif model.road == "padded":
            parts = padded(model, rows)
        else:
            parts = [single(model, ids) for ids in rows]
        # Sequence by sequence: the order in which a mean is summed then depends on that sequence alone.
        pooled = [part[-1].float() if pooling == "last" else part.mean(0, dtype=torch.float32) for part in parts]
        return np.asarray(torch.stack(pooled).cpu().numpy())


def packed(model: LoadedModel, rows: Sequence[npt.NDArray[np.int64]]) -> Sequence[torch.Tensor]:
    """All sequences in one row, attention within each: (tokens, dim) of each."""
    assert model.head is not None
    inputs, positions = list(rows), [np.arange(len(ids)) for ids in rows]
    filler = -sum(map(len, rows)) % EVEN if model.device.type == "cpu" else 0
    if filler:  # a segment of its own, read by nobody; counted up, its positions could switch a rotary scaling
        inputs.append(np.zeros(filler, dtype=np.int64))
        positions.append(np.zeros(filler, dtype=np.int64))
    with segments(Cuts([len(ids) for ids in inputs], device=model.device), model.attend):
        states = model.head.backbone(
            input_ids=to(np.concatenate(inputs)[None], model.device),
            position_ids=to(np.concatenate(positions)[None], model.device),
            use_cache=False,
        )[0][0]  # (tokens, dim)
    return torch.split(states, [len(ids) for ids in inputs])[: len(rows)]


def padded(model: LoadedModel, rows: Sequence[npt.NDArray[np.int64]]) -> Sequence[torch.Tensor]:
    """Right-padded rows: with causal attention no real token sees the padding. (tokens, dim) of each."""
    assert model.head is not None
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    mask = np.stack([np.arange(width) < len(row) for row in rows]).astype(np.int64)
    given = None if mask.all() else to(mask, model.device)
    states = model.head.backbone(input_ids=to(ids, model.device), attention_mask=given, use_cache=False)[0]
    return [state[: len(row)] for state, row in zip(states, rows, strict=True)]


def single(model: LoadedModel, ids: npt.NDArray[np.int64]) -> torch.Tensor:
    """One sequence through the model's own forward: (tokens, dim).

    Raises:
        ModelError: the model does not give its hidden states away.
    """
    if model.head is not None:
        states: torch.Tensor = model.head.backbone(input_ids=to(ids[None], model.device), use_cache=False)[0][0]
        return states
    out = model.model(input_ids=to(ids[None], model.device), use_cache=False, output_hidden_states=True)
    layers = getattr(out, "hidden_states", None)
    if not layers:
        raise ModelError(
            f"`{model.source.name}` does not give its hidden states away", hint="take another encoder, e.g. `tfidf`"
        )
    last: torch.Tensor = layers[-1][0]
    return last
