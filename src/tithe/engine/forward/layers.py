"""The way in between a model's blocks: hidden states handed on while it reads.

Transformers can keep all of them until a forward pass is done; that holds layers x tokens x width at once. Here a hook
before each block hands its input on and forgets it. Whether these are what transformers itself calls the hidden states
is tried once on a short sequence, and where they are not, its own list is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from tithe.engine.forward.attention import segments
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.states import Hand, LogitsHead
from tithe.engine.forward.varlen import Varlen
from tithe.engine.sources import ModelSource
from tithe.errors import ModelError

TOKENS = 12  # of the sequence that is tried
SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # relative, of the largest state


class Loaded(Protocol):
    """What has to be known of a model to read its hidden states."""

    @property
    def source(self) -> ModelSource: ...
    @property
    def model(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def head(self) -> LogitsHead | None: ...
    @property
    def attend(self) -> Varlen | None: ...


class _Listener(threading.local):
    hand: Hand | None = None


class Layers:
    """A model's hidden states, numbered from 0, the input of its first block, to `count` - 1, after its final norm.

    Attributes:
        count: how many there are.
        hooked: whether they are handed on one by one; else all at once after the pass.
        head_true: whether the head, run apart on the last of them, gives the model's own logits.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._listener = _Listener()
        own, logits = self._own(loaded)
        self.count = len(own)
        self.head_true = self._head_true(loaded, own[-1][0], logits[0])
        self.hooked = any(self._hang(loaded, blocks, own) for blocks in lists_of_blocks(loaded.model, self.count - 1))

    @contextmanager
    def handing(self, hand: Hand | None) -> Iterator[None]:
        """While this lasts, what the model reads in this thread is handed over."""
        self._listener.hand = hand if self.hooked else None
        try:
            yield
        finally:
            self._listener.hand = None

    def _hang(self, loaded: Loaded, blocks: torch.nn.ModuleList, own: tuple[torch.Tensor, ...]) -> bool:
        """Hook a list of blocks; taken off again where these are not the ones."""
        self.hooked = True
        handles = [block.register_forward_pre_hook(self._hook(i), with_kwargs=True) for i, block in enumerate(blocks)]
        if self._true(loaded, own):
            return True
        for handle in handles:
            handle.remove()
        return False

    def _hook(self, layer: int) -> Any:
        def hook(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._listener.hand is not None:
                self._listener.hand(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def _head_true(self, loaded: Loaded, last: torch.Tensor, logits: torch.Tensor) -> bool:
        if loaded.head is None:
            return False
        with torch.inference_mode():
            apart = loaded.head.logits(last)
        return apart.shape == logits.shape and near(apart, logits, SAME[loaded.dtype])

    def _own(self, loaded: Loaded) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What transformers calls the hidden states of a short sequence, (1, tokens, dim) each, and its logits."""
        with torch.inference_mode():
            out = self._read(loaded, output_hidden_states=True)
        states = getattr(out, "hidden_states", None)
        if not states:
            raise ModelError(
                f"`{loaded.source.name}` does not give its hidden states away",
                hint="take a scorer that reads likelihoods, such as `ifd`",
            )
        return tuple(states), out.logits

    def _true(self, loaded: Loaded, own: tuple[torch.Tensor, ...]) -> bool:
        found: dict[int, torch.Tensor] = {}

        def keep(layer: int, states: torch.Tensor) -> None:
            found[layer] = states.clone()

        with torch.inference_mode(), self.handing(keep):
            self._read(loaded)
        if sorted(found) != list(range(self.count - 1)):
            return False
        pairs = ((states, own[layer]) for layer, states in found.items())
        return all(a.shape == b.shape and near(a, b, SAME[loaded.dtype]) for a, b in pairs)

    def _read(self, loaded: Loaded, **more: Any) -> Any:
        """A dozen tokens through the model's own forward."""
        ids = torch.arange(TOKENS, device=loaded.device)[None] % loaded.vocabulary
        with segments(Cuts([TOKENS], device=loaded.device), loaded.attend):
            return loaded.model(input_ids=ids, use_cache=False, **more)


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    scale = float(other.abs().max())
    return float((one.float() - other.to(one.device).float()).abs().max()) <= tolerance * max(scale, 1e-6)


def lists_of_blocks(model: torch.nn.Module, count: int) -> Iterator[torch.nn.ModuleList]:
    """Whatever could be a decoder's blocks: lists of so many modules, in the model's order."""
    return (part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count)
