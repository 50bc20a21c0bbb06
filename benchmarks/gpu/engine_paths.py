"""Run the engine on a model made in memory, on a given forward path, with other attention or compiled parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from tithe.engine.batches import Batch
from tithe.engine.engine import Engine
from tithe.engine.forward import attention
from tithe.engine.forward.attention import Varlen
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.forward.path_choice import choose_forward_path
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.fused import Fused
from tithe.engine.model_source import ModelSource
from tithe.records import Pass, Problem


def load(model: Any, name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Wrap a model as if it were loaded from a folder, on the first forward path that is correct."""
    loaded = LoadedModel(ModelSource(name, Path(name)), model, device, dtype, fingerprint="random weights")
    choose_forward_path(loaded)
    return loaded


def packed(loaded: LoadedModel, attend: Varlen | None) -> LoadedModel:
    """Return the model on the packed path, whichever was chosen; without `attend` with one call per segment."""
    attention.register()
    head = loaded.head or OutputHead(loaded.model)
    return replace(loaded, forward_path="packed", implementation=attention.PACKED, head=head, attend=attend)


def padded(loaded: LoadedModel) -> LoadedModel:
    """Return the model on the padded path."""
    head = loaded.head or OutputHead(loaded.model)
    return replace(loaded, forward_path="padded", implementation="sdpa", head=head, attend=None)


def shared(batch: Batch) -> list[int]:
    """Return, for each pass of a batch, how many of its tokens are read in another pass."""
    return [0 if one is None else one.tokens for one in batch.after or [None] * len(batch.index)]


def run_engine(
    loaded: LoadedModel, passes: Sequence[Pass], budget: int, until: float, *, compiled: bool = False
) -> tuple[dict[int, np.ndarray], list[int], dict[str, Any]]:
    """Read passes until time is up; return NLLs by pass, tokens of each pass read in another, and notes."""
    engine = Engine(loaded, budget=budget, compiled=compiled)
    batches = engine.batches(passes)
    found, common, problems = dict[int, np.ndarray](), [0] * len(passes), 0
    for batch, results in engine.run(passes, InTime(batches, until)):
        for i, read_elsewhere, result in zip(batch.index, shared(batch), results, strict=True):
            common[i] = read_elsewhere
            if isinstance(result, Problem):
                problems += 1
            else:
                found[i] = result
    notes = {"road": loaded.forward_path, "attention": loaded.implementation, "batches": len(batches)}
    notes |= {"halved": engine.halved} if engine.halved else {}
    return found, common, notes | ({"out_of_memory": problems} if problems else {})


class InTime(list[Batch]):
    """Batches until time is up, at least one; a batch that the engine starts ahead is counted too."""

    def __init__(self, batches: Sequence[Batch], until: float) -> None:
        super().__init__(batches)
        self.until = until

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__()):
            if number and perf_counter() > self.until:
                return
            yield batch


def compiled_parts(loaded: LoadedModel) -> Fused:
    """Return the parts that the engine compiles, not in use yet. On a CPU torch only traces them."""
    return Fused(loaded.model, backend="inductor" if loaded.device.type == "cuda" else "eager")
