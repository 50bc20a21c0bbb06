"""Hidden states as readouts: chosen tokens' states go layer by layer to a reader while the batch is on the device.

Layers are numbered as transformers numbers hidden states: 0 is what goes into the first block, the last one, `count`
less 1, is what the output head reads, after the final norm. A reader takes rows of one layer, adds what it wants to
what it has, and lets go of them, so that no more than one layer's states are held at a time.

Transformers can keep all of them until a forward pass is done; that holds layers x tokens x width at once. Here a hook
before each block hands its input on and forgets it. Whether these are what transformers itself calls the hidden states
is tried once on a short sequence, and where they are not, its own list is taken.
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
from tithe.engine.forward.output_head import Head
from tithe.engine.host import fetched, to
from tithe.engine.readouts.base import Readout
from tithe.engine.sources import ModelSource
from tithe.errors import ModelError
from tithe.records import Pass, Problem

ALL_GOOD = 1 << 30
Results: TypeAlias = Callable[[], Sequence[Any]]  # of a reader; called, they are waited for
TOKENS = 12  # of the sequence that is tried
SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # relative, of the largest state


class StateReader(Protocol):
    """What one batch's states are given to."""

    def take(self, layer: int, rows: torch.Tensor) -> None:
        """(tokens, dim) of one layer, all sequences one after the other, in the model's dtype; layers ascend."""

    def results(self) -> Results:
        """One per sequence, for `Readout.read` as `view.found`; called once, after the last layer.

        A GPU may have the next batch by the time they are waited for: what is still to be computed on it is asked of
        it before this returns, and what is returned should not hold the reader.
        """


class StateReadout(Readout):
    """A readout of hidden states."""

    reads_nll: ClassVar[bool] = False

    @abstractmethod
    def layers(self, count: int) -> Sequence[int]:
        """Return which of `count` hidden states it wants."""

    @abstractmethod
    def span(self, pass_: Pass) -> range:
        """Return which tokens of a pass it wants the states of."""

    @abstractmethod
    def reader(self, lengths: Sequence[int], model: Reading) -> StateReader:
        """Make what takes the states of a batch.

        Args:
            lengths: tokens of each sequence that are handed over.
            model: of which the states are.
        """


@dataclass(frozen=True)
class Reading:
    """What a reader may know of the model.

    Args:
        count: hidden states there are: layers and one.
        device: where they are.
        head: the way from the last hidden state to logits; None where it cannot be run apart.
    """

    count: int
    device: torch.device
    head: Head | None


@dataclass
class Tap:
    """One readout's hold on a batch.

    Args:
        readout: whose.
        reader: takes the states.
        layers: those it wants.
        spans: place in the batch -> tokens it wants there.
        at: (tokens,) where these stand among all tokens that are read together; set when that is known.
    """

    readout: StateReadout
    reader: StateReader
    layers: frozenset[int]
    spans: Mapping[int, range]
    at: torch.Tensor | None = None
    broken: torch.Tensor | None = field(default=None, init=False)  # (tokens,) first layer with inf or NaN

    def place(self, where: Sequence[npt.NDArray[np.int64]], device: torch.device) -> None:
        """Find the tokens, given where each of a pass stands."""
        at = np.concatenate([where[i][span.start : span.stop] for i, span in self.spans.items()])
        self.at = to(at, device)

    def take(self, layer: int, states: torch.Tensor) -> None:
        """(tokens, dim) of all that is read together."""
        if layer not in self.layers:
            return
        assert self.at is not None, "place comes first"
        rows = states[self.at.to(states.device)].to(self.at.device)  # layers may lie on several devices
        if self.broken is None:
            self.broken = torch.full((len(rows),), ALL_GOOD, device=rows.device)
        odd = ~torch.isfinite(rows.sum(dim=1, dtype=torch.float32))  # one number a token: a sum keeps inf and NaN
        self.broken.masked_fill_(odd & (self.broken == ALL_GOOD), layer)
        self.reader.take(layer, rows)

    def results(self, dtype: str) -> Callable[[], dict[int, Any]]:
        """By place in the batch what the reader made of it, or why it could not; called, they are waited for."""
        made, spans = self.reader.results(), self.spans  # what waits keeps neither tap nor reader on the device
        broken = None if self.broken is None else fetched(self.broken)

        def wait() -> dict[int, Any]:
            found = dict(zip(spans, made(), strict=True))
            for i, layer in first_broken(broken(), spans) if broken is not None else ():
                found[i] = not_finite(layer, dtype)
            return found

        return wait


def first_broken(layers: npt.NDArray[np.int64], spans: Mapping[int, range]) -> Iterator[tuple[int, int]]:
    """Yield the place of each sequence with inf or NaN, and the first layer that has them.

    Args:
        layers: (tokens,) the first one of each token, or `ALL_GOOD`.
        spans: place in the batch -> tokens, as they follow one another.
    """
    start = 0
    for i, span in spans.items():
        first = int(layers[start : start + len(span)].min(initial=ALL_GOOD))
        start += len(span)
        if first < ALL_GOOD:
            yield i, first


def not_finite(layer: int, dtype: str) -> Problem:
    ways = {"fp16": "bf16 or fp32 may hold them", "bf16": "fp32 may hold them"}.get(dtype, "the weights may be damaged")
    return Problem(f"hidden states are not finite in {dtype}: from layer {layer} on; {ways}")


def make_taps(passes: Sequence[Pass], asked: Sequence[Sequence[Readout]], model: Reading) -> list[Tap]:
    """Make the taps of a batch from the readouts asked of each pass."""
    taps = []
    for readout in dict.fromkeys(one for each in asked for one in each if isinstance(one, StateReadout)):
        spans = {i: readout.span(passes[i]) for i, each in enumerate(asked) if readout in each}
        reader = readout.reader([len(span) for span in spans.values()], model)
        taps.append(Tap(readout, reader, frozenset(readout.layers(model.count)), spans))
    return taps


Hand = Callable[[int, torch.Tensor], None]


class _Listener(threading.local):
    hand: Hand | None = None


class Model(Protocol):
    """What `Layers` needs of a loaded model."""

    source: ModelSource
    model: Any
    device: torch.device
    dtype: torch.dtype
    head: Head | None
    attend: Varlen | None

    @property
    def vocabulary(self) -> int:
        """Return the rows of the embedding."""


class Layers:
    """A model's hidden states, numbered from 0, the input of its first block, to `count` - 1, after its final norm.

    Attributes:
        count: how many there are.
        hooked: whether they are handed on one by one; else all at once after the pass.
        head_true: whether the head, run apart on the last of them, gives the model's own logits.
    """

    def __init__(self, loaded: Model) -> None:
        self._listener = _Listener()
        own, logits = self._own(loaded)
        self.count = len(own)
        self.head_true = self._head_true(loaded, own[-1][0], logits[0])
        self.hooked = any(self._hang(loaded, blocks, own) for blocks in lists_of_blocks(loaded.model, self.count - 1))

    @contextmanager
    def handing(self, hand: Hand | None) -> Iterator[None]:
        """Hand over what the model reads in this thread while this lasts."""
        self._listener.hand = hand if self.hooked else None
        try:
            yield
        finally:
            self._listener.hand = None

    def _hang(self, loaded: Model, blocks: torch.nn.ModuleList, own: tuple[torch.Tensor, ...]) -> bool:
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

    def _head_true(self, loaded: Model, last: torch.Tensor, logits: torch.Tensor) -> bool:
        if loaded.head is None:
            return False
        with torch.inference_mode():
            apart = loaded.head.logits(last)
        return apart.shape == logits.shape and near(apart, logits, SAME[loaded.dtype])

    def _own(self, loaded: Model) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return transformers' hidden states of a short sequence, (1, tokens, dim) each, and its logits."""
        with torch.inference_mode():
            out = self._read(loaded, output_hidden_states=True)
        states = getattr(out, "hidden_states", None)
        if not states:
            raise ModelError(
                f"`{loaded.source.name}` does not give its hidden states away",
                hint="take a scorer that reads likelihoods, such as `ifd`",
            )
        return tuple(states), out.logits

    def _true(self, loaded: Model, own: tuple[torch.Tensor, ...]) -> bool:
        found: dict[int, torch.Tensor] = {}

        def keep(layer: int, states: torch.Tensor) -> None:
            found[layer] = states.clone()

        with torch.inference_mode(), self.handing(keep):
            self._read(loaded)
        if sorted(found) != list(range(self.count - 1)):
            return False
        pairs = ((states, own[layer]) for layer, states in found.items())
        return all(a.shape == b.shape and near(a, b, SAME[loaded.dtype]) for a, b in pairs)

    def _read(self, loaded: Model, **more: Any) -> Any:
        """Read a dozen tokens through the model's own forward."""
        ids = torch.arange(TOKENS, device=loaded.device)[None] % loaded.vocabulary
        with segments(Cuts([TOKENS], device=loaded.device), loaded.attend):
            return loaded.model(input_ids=ids, use_cache=False, **more)


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    scale = float(other.abs().max())
    return float((one.float() - other.to(one.device).float()).abs().max()) <= tolerance * max(scale, 1e-6)


def lists_of_blocks(model: torch.nn.Module, count: int) -> Iterator[torch.nn.ModuleList]:
    """Yield whatever could be a decoder's blocks: lists of so many modules, in the model's order."""
    return (part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count)
