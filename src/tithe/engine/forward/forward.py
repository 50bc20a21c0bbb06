"""Forward paths through a model: token ids in, NLL of each response token out.

Three paths, from fast to safe. `packed`: all sequences in one row, without padding. `padded`: right-padded rows.
`single`: one sequence at a time, through the model's own forward. `path_choice.py` checks which of them are correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise, zip_longest
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.batches import SharedPrefix
from tithe.engine.forward.attention import Varlen, segments
from tithe.engine.forward.cuts import Cuts, Seen
from tithe.engine.forward.output_head import OutputHead, token_nll
from tithe.engine.forward.states import Layers, Tap
from tithe.engine.host import start_fetch, to_device
from tithe.records import Pass

PACK_EVEN = 64  # on a CPU a pack is padded to a multiple of this, for the same reason as `output_head.EVEN`
TokenNlls = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.integer[Any]]  # int32 as in passes; cast once per batch, not once per pass
NO_NLL: TokenNlls = np.empty(0, dtype=np.float32)
PendingNlls: TypeAlias = Callable[[], list[TokenNlls]]  # waits for the device when called


@dataclass(frozen=True)
class ReadRequest:
    """What to compute for the passes of one batch.

    Args:
        nll: for each pass, whether to compute its likelihoods.
        taps: receive the hidden states.
        layers: yields the hidden states; None if there are no taps.
    """

    nll: Sequence[bool]
    taps: Sequence[Tap] = ()
    layers: Layers | None = None

    @classmethod
    def likelihoods(cls, passes: Sequence[Pass]) -> ReadRequest:
        """Request the likelihoods of all passes, and no hidden states."""
        return cls([True] * len(passes))

    def length(self, i: int, pass_: Pass) -> int:
        """Count the tokens to read of a pass: all but the last, which predicts nothing; a tap may need it too."""
        tokens = len(pass_.ids)
        whole = any([tap.spans[i].stop == tokens for tap in self.taps if i in tap.spans]) if self.taps else False
        return tokens if whole or tokens == 1 else tokens - 1  # at least one token has to be read

    def handing(self) -> AbstractContextManager[None]:
        """Pass on the model's hidden states to the taps within the `with` block."""
        return nullcontext() if self.layers is None else self.layers.handing(self.hand)

    def hand(self, layer: int, states: torch.Tensor) -> None:
        """Pass one layer's states to all taps: (rows, tokens, dim)."""
        for tap in self.taps:
            tap.take(layer, states.flatten(0, 1))  # (rows * tokens, dim)

    def place(self, where: Sequence[Ids], device: torch.device) -> None:
        """Tell all taps where each pass's tokens are among those of the batch."""
        for tap in self.taps:
            tap.place(where, device)

    def scored(self, passes: Sequence[Pass], where: Sequence[Ids]) -> tuple[list[Ids], list[TokenIds]]:
        """Return for each pass the places of the states that predict its response, and the response's ids."""
        places, targets = [], list[TokenIds]()
        for i, pass_ in enumerate(passes):
            first = max(pass_.start, 1)  # nothing predicts token 0; the state at t - 1 predicts token t
            places.append(where[i][first - 1 : len(pass_.ids) - 1] if self.nll[i] else where[i][:0])
            targets.append(pass_.ids[first:] if self.nll[i] else pass_.ids[:0])
        return places, targets


def packed(
    head: OutputHead,
    passes: Sequence[Pass],
    device: torch.device,
    after: Sequence[SharedPrefix | None] = (),
    wanted: ReadRequest | None = None,
    attend: Varlen | None = None,
) -> PendingNlls:
    """Read all sequences in one row, with attention within each; a shared prefix is read once."""
    wanted = wanted or ReadRequest.likelihoods(passes)
    row = PackedRow()
    read = lengths_read(passes, after, wanted)
    for pass_, length, one in zip_longest(passes, read, after):
        row.add(pass_.ids[:length], one)
    if device.type == "cpu":
        row.even(PACK_EVEN)  # after all passes: the filler must not shift their places
    wanted.place(row.where, device)
    with segments(Cuts(row.lengths, row.before, device), attend):
        hidden = backbone_states(
            head,
            wanted,
            input_ids=to_device(joined(row.inputs)[None], device),
            position_ids=to_device(np.concatenate(row.positions)[None], device),
        )
    return through_head(head, hidden, *wanted.scored(passes, row.where))


def lengths_read(passes: Sequence[Pass], after: Sequence[SharedPrefix | None], wanted: ReadRequest) -> list[int]:
    """Count the tokens to read of each pass: those it needs itself, and those that others continue."""
    lengths = [wanted.length(i, pass_) for i, pass_ in enumerate(passes)]
    for one in after:
        if one is not None:
            lengths[one.place] = max(lengths[one.place], one.tokens)
    return lengths


@dataclass
class PackedRow:
    """A builder of packs: the segments of one row, each with its positions.

    A GPU waits while a pack of some hundred short sequences is built, so index ranges are views of one cached array.

    Attributes:
        where: for each sequence, the places of its tokens in the row.
        before: for each segment, the slices of the row that it continues.
    """

    inputs: list[TokenIds] = field(default_factory=list)
    positions: list[Ids] = field(default_factory=list)
    before: list[Seen] = field(default_factory=list)
    where: list[Ids] = field(default_factory=list)
    tokens: int = 0
    known: dict[SharedPrefix, Seen] = field(default_factory=dict, init=False)  # slices of prefixes seen before

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.inputs]

    def add(self, ids: TokenIds, after: SharedPrefix | None) -> None:
        """Add a sequence, without the prefix that an earlier one reads for it."""
        own = ids if after is None else ids[after.tokens :]
        here = counted(self.tokens, self.tokens + len(own))
        self.where.append(here if after is None else np.concatenate([self.common(after), here]))
        if len(own):
            self.segment(own, counted(len(ids) - len(own), len(ids)), () if after is None else self.continued(after))

    def common(self, after: SharedPrefix) -> Ids:
        """Return the places of a shared prefix in the row."""
        return self.where[after.place][: after.tokens]

    def continued(self, after: SharedPrefix) -> Seen:
        """Return a shared prefix as slices of the row."""
        if after not in self.known:
            self.known[after] = runs(self.common(after))
        return self.known[after]

    def segment(self, ids: TokenIds, positions: Ids, before: Seen) -> None:
        self.inputs.append(ids)
        self.positions.append(positions)
        self.before.append(before)
        self.tokens += len(ids)

    def even(self, multiple: int) -> None:
        """Pad the row to a multiple with a segment of its own.

        Its positions are all 0: counting up, they could exceed the limit of a rotary scaling.
        """
        if filler := -self.tokens % multiple:
            self.segment(np.zeros(filler, dtype=np.int64), np.zeros(filler, dtype=np.int64), ())


def counted(start: int, stop: int) -> Ids:
    """Return the numbers from `start` to `stop`, exclusive, as a read-only view."""
    return count_to(1 << max(15, stop.bit_length()))[start:stop]


@cache
def count_to(stop: int) -> Ids:
    """Return the numbers below `stop`, read-only."""
    numbers = np.arange(stop)
    numbers.setflags(write=False)
    return numbers


def joined(parts: Sequence[TokenIds]) -> Ids:
    return np.concatenate(parts).astype(np.int64, copy=False)


def runs(places: Ids) -> Seen:
    """Turn ascending places into slices of consecutive ones."""
    if not len(places):
        return ()
    if places[-1] - places[0] == len(places) - 1:
        return (slice(int(places[0]), int(places[-1]) + 1),)
    parts = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    return tuple(slice(int(part[0]), int(part[-1]) + 1) for part in parts)


def padded(
    head: OutputHead, passes: Sequence[Pass], device: torch.device, wanted: ReadRequest | None = None
) -> PendingNlls:
    """Read right-padded rows; with causal attention no real token sees the padding."""
    wanted = wanted or ReadRequest.likelihoods(passes)
    read = [pass_.ids[: wanted.length(i, pass_)].astype(np.int64) for i, pass_ in enumerate(passes)]
    width = max(map(len, read))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in read])  # (passes, width)
    mask = np.stack([np.arange(width) < len(row) for row in read]).astype(np.int64)
    where = [np.arange(len(row)) + i * width for i, row in enumerate(read)]  # places in the flattened rows
    wanted.place(where, device)
    # A mask of ones is left out, so that fused causal kernels can run.
    given = None if mask.all() else to_device(mask, device)
    hidden = backbone_states(head, wanted, input_ids=to_device(ids, device), attention_mask=given)
    return through_head(head, hidden, *wanted.scored(passes, where))


def backbone_states(head: OutputHead, wanted: ReadRequest, **inputs: torch.Tensor | None) -> torch.Tensor:
    """Run the backbone, pass all layers' states to the taps, and return the last ones: (tokens, dim)."""
    layers = wanted.layers
    together = layers is not None and not layers.hooked
    with wanted.handing():
        more = {"output_hidden_states": True} if together else {}
        out = head.backbone(**inputs, use_cache=False, **more)
    last: torch.Tensor = out[0]  # (rows, tokens, dim), after the final norm
    if layers is not None:
        for layer, states in enumerate(out.hidden_states[:-1] if together else ()):
            wanted.hand(layer, states)
        wanted.hand(layers.count - 1, last)
    return last.flatten(0, 1)


def through_head(
    head: OutputHead, hidden: torch.Tensor, places: Sequence[Ids], targets: Sequence[TokenIds]
) -> PendingNlls:
    """Return -log p of each pass's targets, from the states of all tokens: (tokens, dim)."""
    lengths = [len(ids) for ids in targets]
    if not sum(lengths):
        return lambda: [NO_NLL for _ in lengths]
    at, ids = (to_device(joined(parts), hidden.device) for parts in (places, targets))
    # Only states that predict a response token go through the head: (scored, dim) -> (scored,)
    values = start_fetch(head.nll(hidden[at], ids).float())
    return lambda: cut(values(), lengths)


def single(model: Any, passes: Sequence[Pass], device: torch.device, wanted: ReadRequest | None = None) -> PendingNlls:
    """Read passes one by one through the model's own forward, with full logits: slow, and the reference for the rest.

    Raises:
        ValueError: there are taps and several passes; taps take one batch of states.
    """
    wanted = wanted or ReadRequest.likelihoods(passes)
    if wanted.taps and len(passes) > 1:
        raise ValueError(f"{len(passes)} passes at once, whose states come one by one here")
    out = []
    for i, pass_ in enumerate(passes):
        ids = pass_.ids[: wanted.length(i, pass_)].astype(np.int64)
        found = model(input_ids=to_device(ids[None], device), use_cache=False, output_hidden_states=bool(wanted.taps))
        where = [np.arange(len(ids))]
        wanted.place(where, device)
        for layer, states in enumerate(found.hidden_states if wanted.taps else ()):
            wanted.hand(layer, states)
        (places,), (targets,) = ReadRequest([wanted.nll[i]]).scored([pass_], where)
        nll = (
            token_nll(found.logits[0][to_device(places, device)], to_device(joined([targets]), device))
            if len(targets)
            else None
        )
        out.append(NO_NLL if nll is None else nll.float().cpu().numpy())
    return lambda: out


def cut(values: npt.NDArray[np.float32], lengths: Sequence[int]) -> list[TokenNlls]:
    """Cut an array into views of the given lengths."""
    ends = list(accumulate(lengths, initial=0))
    return [values[start:end] for start, end in pairwise(ends)]
