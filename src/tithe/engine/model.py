"""A loaded model: what it is, where it is, and how it reads passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from tithe.engine.batches import After
from tithe.engine.forward import forward
from tithe.engine.forward.attention import Varlen
from tithe.engine.forward.forward import Coming, ReadRequest, TokenNlls
from tithe.engine.forward.output_head import Head
from tithe.engine.forward.states import Layers, Reading
from tithe.engine.host import on
from tithe.engine.measure.cpu_kernels import Fp32Route
from tithe.engine.sources import ModelSource
from tithe.records import Pass


class Measure(Protocol):
    """What was done to a loaded model to make it faster: its parts compiled, its weights in fp8."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""

    def words(self) -> str:
        """Return them in a few words for the terminal."""


@dataclass
class LoadedModel:
    """A model on its device, with the fastest forward path through it that was found true.

    Args:
        dtype: that it computes in; bf16 where its weights are or will be fp8.
        road: `packed`, `padded` or `single`.
        fallbacks: why faster roads were not taken, for the run record.
        alone_above: sequences longer than this must not share a batch.
        keeps: what it keeps of a pass that it has read; None where that is nothing.
        fp32: which kernels multiply, in fp32 on a CPU.
        attend: what attends over a whole pack in one call; None where that is one call a segment, and on other roads.
        fused: parts that were compiled, or why they were not; None where nobody tried.
        awaits_fp8: its weights are still bf16, and are put into fp8 when it is first asked to read.
        fp8: what is in fp8, and how far that is from bf16.
        untouched: rotary embeddings and their state before anything was read, where reading changes it.
    """

    source: ModelSource
    model: Any
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    road: str = "single"
    implementation: str | None = None
    fallbacks: list[str] = field(default_factory=list)
    alone_above: int | None = None
    keeps: str | None = None
    head: Head | None = None
    fp32: Fp32Route | None = None
    attend: Varlen | None = None
    fused: Measure | None = None
    awaits_fp8: bool = False
    fp8: Measure | None = None
    untouched: list[tuple[torch.nn.Module, dict[str, Any]]] = field(default_factory=list, repr=False)

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def side_by_side(self) -> bool:
        """Tell whether several passes may run at once: not where the model keeps state between them."""
        return self.alone_above is None and self.keeps is None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def nll(self, passes: Sequence[Pass], after: Sequence[After | None] = ()) -> list[TokenNlls]:
        """Return -log p of each response token that has context: one float32 array per pass."""
        return self.along(self.road, passes, after)

    def along(
        self, road: str, passes: Sequence[Pass], after: Sequence[After | None] = (), wanted: ReadRequest | None = None
    ) -> list[TokenNlls]:
        """Read passes on the given forward path, and hand hidden states to `wanted`."""
        return self.begun(road, passes, after, wanted or ReadRequest.likelihoods(passes))()

    def begun(self, road: str, passes: Sequence[Pass], after: Sequence[After | None], wanted: ReadRequest) -> Coming:
        """Start reading passes; call the result to wait for it. On a CPU the work is done by then."""
        long_one = self.alone_above is not None and len(passes) == 1 and len(passes[0].ids) > self.alone_above
        if long_one:
            return self.read_whole(road, passes[0], wanted)
        return self.read(road, passes, after, wanted)

    def read(self, road: str, passes: Sequence[Pass], after: Sequence[After | None], wanted: ReadRequest) -> Coming:
        if self.alone_above is not None:
            self.forget()
        with on(self.device), torch.inference_mode():
            if road == "single" or self.head is None:
                return forward.single(self.model, passes, self.device, wanted)
            if road == "padded":
                return forward.padded(self.head, passes, self.device, wanted)
            return forward.packed(self.head, passes, self.device, after, wanted, self.attend)

    def read_whole(self, road: str, pass_: Pass, wanted: ReadRequest) -> Coming:
        """Read a pass longer than `alone_above`, its last token too: the scaling depends on how much is read."""
        longer = Pass(np.append(pass_.ids, pass_.ids[-1:]), pass_.start)
        coming = self.read(road, [longer], (), wanted)
        return lambda: [nll[:-1] for nll in coming()]

    @cached_property
    def layers(self) -> Layers:
        """Find the way to its hidden states; ask for this before several threads read."""
        return Layers(self)

    @property
    def reading(self) -> Reading:
        """Return what readers of hidden states may know of the model."""
        return Reading(self.layers.count, self.device, self.head if self.layers.head_true else None)

    def forget(self) -> None:
        """Put rotary embeddings back to what they were when loaded: some scalings change as they read."""
        if not self.untouched:
            parts = [part for part in self.model.modules() if hasattr(part, "max_seq_len_cached")]
            self.untouched = [(part, {**vars(part), "_buffers": dict(part._buffers)}) for part in parts]
        for part, state in self.untouched:
            vars(part).clear()
            vars(part).update({**state, "_buffers": dict(state["_buffers"])})
