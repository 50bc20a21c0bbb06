"""The engine on a model that was made in memory, and its packed road with other attention or compiled parts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from tithe.engine import attention
from tithe.engine.batching import Batch
from tithe.engine.cuts import Cuts
from tithe.engine.engine import Engine
from tithe.engine.forward import Head
from tithe.engine.model import LoadedModel
from tithe.engine.probe import probe
from tithe.engine.sources import ModelSource
from tithe.engine.varlen import Varlen
from tithe.records import Pass, Problem

NAME = "tithe_varlen"


def load(model: Any, name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """As from a folder: probed, on the first road that is true."""
    loaded = LoadedModel(ModelSource(name, Path(name)), model, device, dtype, fingerprint="random weights")
    probe(loaded)
    return loaded


def packed(loaded: LoadedModel, implementation: str) -> LoadedModel:
    """The same model on the packed road, whatever the probe took."""
    attention.register()
    return replace(loaded, road="packed", implementation=implementation, head=loaded.head or Head(loaded.model))


class Row(threading.local):
    """What this thread reads: the engine's note of it, and its cuts, made once for all layers."""

    pack: object = None
    cuts: Cuts


class OneCall:
    """Attention for transformers by `Varlen`, over the segments that the packed road declares."""

    def __init__(self) -> None:
        self.varlen = Varlen()
        self.row = Row()

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None:
            raise ValueError("packed attention takes no mask")
        pack = attention._pack
        if self.row.pack is not pack.masks:  # a new one for each row
            self.row.pack, self.row.cuts = pack.masks, Cuts(pack.lengths, pack.before, query.device)
        out = self.varlen(query, key, value, self.row.cuts, scaling=scaling, window=sliding_window, softcap=softcap)
        return out, None

    def register(self) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, self)

    def report(self) -> list[dict[str, Any]]:
        """Which way was taken for which kind of call, and why not those before it."""
        return [
            {"heads": kind.heads, "key_heads": kind.key_heads, "dim": kind.dim, "taken": name,
             "refused": self.varlen.refused[kind]}
            for kind, name in self.varlen.chosen.items()
        ]  # fmt: skip


def shared(batch: Batch) -> list[int]:
    """Of each pass of a batch how many of its tokens are read in another one."""
    return [0 if one is None else one.tokens for one in batch.after or [None] * len(batch.index)]


def run_engine(
    loaded: LoadedModel, passes: Sequence[Pass], budget: int, until: float
) -> tuple[dict[int, np.ndarray], list[int], dict[str, Any]]:
    """Token NLLs by pass, tokens of each pass that were read in another, and notes; it stops where time is up."""
    engine = Engine(loaded, budget=budget)
    batches = engine.batches(passes)
    found, common, problems = dict[int, np.ndarray](), [0] * len(passes), 0
    for batch, results in engine.run(passes, batches):
        for i, read_elsewhere, result in zip(batch.index, shared(batch), results, strict=True):
            common[i] = read_elsewhere
            if isinstance(result, Problem):
                problems += 1
            else:
                found[i] = result
        if perf_counter() > until:
            break
    notes = {"road": loaded.road, "attention": loaded.implementation, "batches": len(batches)}
    notes |= {"halved": engine.halved} if engine.halved else {}
    return found, common, notes | ({"out_of_memory": problems} if problems else {})


class CompiledParts:
    """Norms, the gated product and the rotation of positions by torch.compile: what moves memory and computes little.

    Compiled are the classes' methods, once for all layers. On a CPU torch traces them and compiles nothing.
    """

    def __init__(self, model: Any) -> None:
        backend = "inductor" if model.device.type == "cuda" else "eager"
        classes = {type(part) for part in model.modules() if type(part).__name__.endswith(("RMSNorm", "MLP"))}
        places = [(kind, "forward") for kind in classes]
        places.append((sys.modules[type(model).__module__], "apply_rotary_pos_emb"))
        self.originals = [(place, name, getattr(place, name)) for place, name in places]
        self.compiled = [
            (place, name, torch.compile(function, dynamic=True, backend=backend))
            for place, name, function in self.originals
        ]

    @contextmanager
    def on(self) -> Iterator[None]:
        try:
            for place, name, function in self.compiled:
                setattr(place, name, function)
            yield
        finally:
            for place, name, function in self.originals:
                setattr(place, name, function)
