"""A loaded model: what it is, where it is, and how it reads passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from tithe.engine.batches import SharedPrefix
from tithe.engine.forward import forward
from tithe.engine.forward.attention import Varlen
from tithe.engine.forward.forward import PendingNlls, ReadRequest, TokenNlls
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.forward.states import Layers, ReaderContext
from tithe.engine.host import on_device
from tithe.engine.measure.cpu_kernels import Fp32Route
from tithe.engine.model_source import ModelSource
from tithe.records import Pass


class Measure(Protocol):
    """The outcome of an attempt to make a loaded model faster: compiled parts, or weights in fp8."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""

    def words(self) -> str:
        """Return the facts in a few words, for the terminal."""


@dataclass
class LoadedModel:
    """A model on its device, with the fastest forward path that gives its own numbers.

    Args:
        dtype: that it computes in; bf16 if its weights are or will be fp8.
        forward_path: `packed`, `padded` or `single`.
        implementation: transformers' name of its attention.
        fallbacks: why faster forward paths were refused, for the run record.
        single_above: sequences longer than this must not share a batch.
        keeps: the module attribute that a forward pass changes; None if passes leave nothing behind.
        head: the output head, run apart from the backbone; None if the model cannot be split there.
        fp32: the kernels that multiply in fp32 on a CPU.
        attend: attention over a whole pack in one call; None for one call per segment, and on other forward paths.
        fused: the compiled parts, or why there are none; None if compiling was not tried.
        awaits_fp8: its weights are still bf16, and are converted to fp8 before the first passes are read.
        fp8: which layers are in fp8, and how far results are from bf16.
        untouched: rotary embeddings and their state before any pass, if reading changes it.
    """

    source: ModelSource
    model: Any
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    forward_path: str = "single"
    implementation: str | None = None
    fallbacks: list[str] = field(default_factory=list)
    single_above: int | None = None
    keeps: str | None = None
    head: OutputHead | None = None
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
    def thread_safe(self) -> bool:
        """Tell whether several passes may run at once: not if the model keeps state between them."""
        return self.single_above is None and self.keeps is None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def nll(self, passes: Sequence[Pass], after: Sequence[SharedPrefix | None] = ()) -> list[TokenNlls]:
        """Return -log p of each response token that has context: one float32 array per pass."""
        return self.read_on(self.forward_path, passes, after)

    def read_on(
        self,
        forward_path: str,
        passes: Sequence[Pass],
        after: Sequence[SharedPrefix | None] = (),
        wanted: ReadRequest | None = None,
    ) -> list[TokenNlls]:
        """Read passes on the given forward path, and hand hidden states to `wanted`."""
        return self.start_reading(forward_path, passes, after, wanted or ReadRequest.likelihoods(passes))()

    def start_reading(
        self, forward_path: str, passes: Sequence[Pass], after: Sequence[SharedPrefix | None], wanted: ReadRequest
    ) -> PendingNlls:
        """Start reading passes; call the result to wait for it. On a CPU the work is done before this returns."""
        long_one = self.single_above is not None and len(passes) == 1 and len(passes[0].ids) > self.single_above
        if long_one:
            return self.start_whole(forward_path, passes[0], wanted)
        return self.start_on(forward_path, passes, after, wanted)

    def start_on(
        self, forward_path: str, passes: Sequence[Pass], after: Sequence[SharedPrefix | None], wanted: ReadRequest
    ) -> PendingNlls:
        if self.single_above is not None:  # a long sequence read before may have left another rotary scaling
            self.forget()
        with on_device(self.device), torch.inference_mode():
            if forward_path == "single" or self.head is None:
                return forward.single(self.model, passes, self.device, wanted)
            if forward_path == "padded":
                return forward.padded(self.head, passes, self.device, wanted)
            return forward.packed(self.head, passes, self.device, after, wanted, self.attend)

    def start_whole(self, forward_path: str, pass_: Pass, wanted: ReadRequest) -> PendingNlls:
        """Start a pass longer than `single_above` with its last token, as the scaling depends on the length read."""
        longer = Pass(np.append(pass_.ids, pass_.ids[-1:]), pass_.start)  # paths drop the last token of a pass
        coming = self.start_on(forward_path, [longer], (), wanted)
        return lambda: [nll[:-1] for nll in coming()]

    @cached_property
    def layers(self) -> Layers:
        """Set up access to the hidden states; call this before several threads read."""
        return Layers(self)

    @property
    def reader_context(self) -> ReaderContext:
        """Return what readers of hidden states may know about the model."""
        return ReaderContext(self.layers.count, self.device, self.head if self.layers.head_true else None)

    def forget(self) -> None:
        """Reset rotary embeddings to their state after loading: some scalings change as they read."""
        if not self.untouched:
            # transformers' rotary embeddings keep the longest length they met in this attribute.
            parts = [part for part in self.model.modules() if hasattr(part, "max_seq_len_cached")]
            self.untouched = [(part, {**vars(part), "_buffers": dict(part._buffers)}) for part in parts]
        for part, state in self.untouched:
            # All attributes, and a copy of the buffers' dict, as reading replaces tensors in it.
            vars(part).clear()
            vars(part).update({**state, "_buffers": dict(state["_buffers"])})
