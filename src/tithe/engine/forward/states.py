"""Hidden states as readouts: chosen tokens' states go layer by layer to a reader while the batch is on the device.

Layers are numbered like transformers' hidden states: 0 is the input of the first block, and the last one, `count` - 1,
is the input of the output head, after the final norm. A reader takes the rows of one layer, accumulates what it needs
and drops them, so that only one layer's states are held at a time.

Transformers can keep all of them until a forward pass is done, but that holds layers x tokens x width at once. Here a
hook before each block passes its input on and forgets it. Whether these inputs are what transformers calls the hidden
states is checked once on a short sequence; if they are not, transformers' own list is used.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.forward.attention import Varlen, segments
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.host import start_fetch, to_device
from tithe.engine.model_source import ModelSource
from tithe.engine.readouts.base import Readout
from tithe.errors import ModelError
from tithe.records import Pass, Problem

ALL_GOOD = 1 << 30  # instead of a layer's number: all layers are finite
PendingStates: TypeAlias = Callable[[], Sequence[Any]]  # waits for a reader's results when called
TOKENS = 12  # length of the test sequence
SAME = {
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
}  # largest difference, relative to the largest state


class StateReader(Protocol):
    """A consumer of one batch's hidden states."""

    def take(self, layer: int, rows: torch.Tensor) -> None:
        """Take one layer's states: (tokens, dim), all sequences one after another, in the model's dtype.

        Layers come in ascending order.
        """

    def results(self) -> PendingStates:
        """Start the results, one per sequence, which `Readout.read` gets as `view.found`; called after the last layer.

        A GPU may be working on the next batch when they are waited for: all its work must be queued before this
        returns, and the function returned should not keep the reader alive.
        """


class StateReadout(Readout):
    """A readout of hidden states."""

    reads_nll: ClassVar[bool] = False

    @abstractmethod
    def layers(self, count: int) -> Sequence[int]:
        """Return which of the model's `count` hidden states to read."""

    @abstractmethod
    def span(self, pass_: Pass) -> range:
        """Return the tokens of a pass whose states to read."""

    @abstractmethod
    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        """Return a reader for the states of one batch.

        Args:
            passes: the batch; the reader gets the states of each one's `span`.
            model: whose states they are.
        """

    def lengths(self, passes: Sequence[Pass]) -> list[int]:
        """Return the number of tokens that are read of each pass."""
        return [len(self.span(one)) for one in passes]


@dataclass(frozen=True)
class ReaderContext:
    """What a reader may know about the model.

    Args:
        count: number of hidden states: blocks plus one.
        device: where they are.
        head: computes logits from the last hidden state; None if it cannot be run apart.
    """

    count: int
    device: torch.device
    head: OutputHead | None


@dataclass
class Tap:
    """A readout's access to the hidden states of one batch.

    Args:
        readout: the readout.
        reader: takes the states.
        layers: hidden states to read.
        spans: place of a pass in the batch -> its tokens to read.
        at: (tokens,) places of these tokens among all tokens of the batch; set by `place`.
    """

    readout: StateReadout
    reader: StateReader
    layers: frozenset[int]
    spans: Mapping[int, range]
    at: torch.Tensor | None = None
    broken: torch.Tensor | None = field(default=None, init=False)  # (tokens,) first layer with inf or NaN

    def place(self, where: Sequence[npt.NDArray[np.int64]], device: torch.device) -> None:
        """Find the tokens to read, given the places of each pass's tokens."""
        at = np.concatenate([where[i][span.start : span.stop] for i, span in self.spans.items()])
        self.at = to_device(at, device)

    def take(self, layer: int, states: torch.Tensor) -> None:
        """Take one layer's states of the whole batch: (tokens, dim)."""
        if layer not in self.layers:
            return
        assert self.at is not None, "place comes first"
        rows = states[self.at.to(states.device)].to(self.at.device)  # layers may be on several devices
        if self.broken is None:
            self.broken = torch.full((len(rows),), ALL_GOOD, device=rows.device)
        odd = ~torch.isfinite(rows.sum(dim=1, dtype=torch.float32))  # (tokens,): a sum keeps inf and NaN
        # The first broken layer stays: later ones only inherit it.
        self.broken.masked_fill_(odd & (self.broken == ALL_GOOD), layer)
        self.reader.take(layer, rows)

    def results(self, dtype: str) -> Callable[[], dict[int, Any]]:
        """Return a function that waits for the results: place in the batch -> result, or the reason for none."""
        made, spans = self.reader.results(), self.spans  # `wait` must not keep the tap or its reader on the device
        broken = None if self.broken is None else start_fetch(self.broken)

        def wait() -> dict[int, Any]:
            found = dict(zip(spans, made(), strict=True))
            for i, layer in first_broken(broken(), spans) if broken is not None else ():
                found[i] = not_finite(layer, dtype)
            return found

        return wait


def first_broken(layers: npt.NDArray[np.int64], spans: Mapping[int, range]) -> Iterator[tuple[int, int]]:
    """Yield the place of each sequence with inf or NaN, and the first layer that has them.

    Args:
        layers: (tokens,) the first such layer of each token, or `ALL_GOOD`.
        spans: place in the batch -> its tokens, in the order of `layers`.
    """
    start = 0
    for i, span in spans.items():
        first = int(layers[start : start + len(span)].min(initial=ALL_GOOD))
        start += len(span)
        if first < ALL_GOOD:
            yield i, first


def not_finite(layer: int, dtype: str) -> Problem:
    """Return the problem of a pass with inf or NaN among its hidden states."""
    ways = {"fp16": "bf16 or fp32 may hold them", "bf16": "fp32 may hold them"}.get(dtype, "the weights may be damaged")
    return Problem(f"hidden states are not finite in {dtype}: from layer {layer} on; {ways}")


def make_taps(passes: Sequence[Pass], asked: Sequence[Sequence[Readout]], model: ReaderContext) -> list[Tap]:
    """Make the taps of a batch from the readouts requested for each pass."""
    taps = []
    for readout in dict.fromkeys(one for each in asked for one in each if isinstance(one, StateReadout)):
        spans = {i: readout.span(passes[i]) for i, each in enumerate(asked) if readout in each}
        reader = readout.reader([passes[i] for i in spans], model)
        taps.append(Tap(readout, reader, frozenset(readout.layers(model.count)), spans))
    return taps


Hand = Callable[[int, torch.Tensor], None]


class _Listener(threading.local):
    hand: Hand | None = None


class HookableModel(Protocol):
    """The parts of a loaded model that `Layers` needs."""

    source: ModelSource
    model: Any
    device: torch.device
    dtype: torch.dtype
    head: OutputHead | None
    attend: Varlen | None

    @property
    def vocabulary(self) -> int:
        """Return the number of rows of the embedding."""


class Layers:
    """Access to a model's hidden states, from 0, the input of its first block, to `count` - 1, after its final norm.

    Attributes:
        count: number of hidden states.
        hooked: whether hooks deliver them one by one; else they come all at once after the forward pass.
        head_true: whether the head, run apart on the last hidden state, gives the model's own logits.
    """

    def __init__(self, loaded: HookableModel) -> None:
        self._listener = _Listener()
        own, logits = self._own(loaded)
        self.count = len(own)
        self.head_true = self._head_true(loaded, own[-1][0], logits[0])
        # Models may have several lists of modules of that length; the first whose hooks prove right is kept.
        self.hooked = any(self._hang(loaded, blocks, own) for blocks in lists_of_blocks(loaded.model, self.count - 1))

    @contextmanager
    def handing(self, hand: Hand | None) -> Iterator[None]:
        """Call `hand` with each hidden state that this thread computes within the `with` block."""
        self._listener.hand = hand if self.hooked else None
        try:
            yield
        finally:
            self._listener.hand = None

    def _hang(self, loaded: HookableModel, blocks: torch.nn.ModuleList, own: tuple[torch.Tensor, ...]) -> bool:
        """Hook a list of blocks and return whether their inputs are the hidden states; if not, remove the hooks."""
        self.hooked = True
        handles = [block.register_forward_pre_hook(self._hook(i), with_kwargs=True) for i, block in enumerate(blocks)]
        if self._true(loaded, own):
            return True
        for handle in handles:
            handle.remove()
        return False

    def _hook(self, layer: int) -> Any:
        """Return a hook that passes a block's input on to this thread's listener."""

        def hook(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._listener.hand is not None:
                self._listener.hand(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def _head_true(self, loaded: HookableModel, last: torch.Tensor, logits: torch.Tensor) -> bool:
        """Tell whether the head gives the model's own logits from the last hidden states."""
        if loaded.head is None:
            return False
        with torch.inference_mode():
            apart = loaded.head.logits(last)
        return apart.shape == logits.shape and near(apart, logits, SAME[loaded.dtype])

    def _own(self, loaded: HookableModel) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return transformers' hidden states of a short sequence, (1, tokens, dim) each, and its logits."""
        with torch.inference_mode():
            out = self._read(loaded, output_hidden_states=True)
        states = getattr(out, "hidden_states", None)
        if not states:
            raise ModelError(
                f"`{loaded.source.name}` does not return its hidden states",
                hint="take a scorer that reads likelihoods, such as `ifd`",
            )
        return tuple(states), out.logits

    def _true(self, loaded: HookableModel, own: tuple[torch.Tensor, ...]) -> bool:
        """Tell whether the hooks pass on what transformers calls the hidden states."""
        found: dict[int, torch.Tensor] = {}

        def keep(layer: int, states: torch.Tensor) -> None:
            found[layer] = states.clone()

        with torch.inference_mode(), self.handing(keep):
            self._read(loaded)
        if sorted(found) != list(range(self.count - 1)):
            return False
        pairs = ((states, own[layer]) for layer, states in found.items())
        return all(a.shape == b.shape and near(a, b, SAME[loaded.dtype]) for a, b in pairs)

    def _read(self, loaded: HookableModel, **more: Any) -> Any:
        """Run a dozen tokens through the model's own forward."""
        ids = torch.arange(TOKENS, device=loaded.device)[None] % loaded.vocabulary
        with segments(Cuts([TOKENS], device=loaded.device), loaded.attend):
            return loaded.model(input_ids=ids, use_cache=False, **more)


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Tell whether two tensors differ by at most a share of the largest value."""
    scale = float(other.abs().max())
    return float((one.float() - other.to(one.device).float()).abs().max()) <= tolerance * max(scale, 1e-6)


def lists_of_blocks(model: torch.nn.Module, count: int) -> Iterator[torch.nn.ModuleList]:
    """Yield all module lists that could be the decoder's blocks, that is, those of the right length."""
    return (part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count)
