"""Forward paths through a model: token ids in, NLL of each response token out.

Three paths, from fast to safe. `packed`: sequences one after another in one row, no padding. `padded`: right-padded
rows. `single`: one sequence, the model's own full forward. `probe.py` finds which are true for a model.
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

from tithe.engine.batches import After
from tithe.engine.forward.attention import Varlen, segments
from tithe.engine.forward.cuts import Cuts, Seen
from tithe.engine.forward.output_head import Head, token_nll
from tithe.engine.forward.states import Layers, Tap
from tithe.engine.host import fetched, to
from tithe.records import Pass

PACK_EVEN = 64  # a pack is filled up to a multiple of this on a CPU, for the same reason as `output_head.EVEN`
TokenNlls = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.integer[Any]]  # as passes hold them: cast once a batch, not once a pass
NO_NLL: TokenNlls = np.empty(0, dtype=np.float32)
Coming: TypeAlias = Callable[[], list[TokenNlls]]  # what was asked of a device; called, it is waited for


@dataclass(frozen=True)
class ReadRequest:
    """What is wanted of passes that are read together.

    Args:
        nll: per pass whether its likelihoods are.
        taps: what takes hidden states.
        layers: how they come; None where there are no taps.
    """

    nll: Sequence[bool]
    taps: Sequence[Tap] = ()
    layers: Layers | None = None

    @classmethod
    def likelihoods(cls, passes: Sequence[Pass]) -> ReadRequest:
        return cls([True] * len(passes))

    def length(self, i: int, pass_: Pass) -> int:
        """Count the tokens to read of a pass: its last one predicts nothing, but its state may be wanted."""
        tokens = len(pass_.ids)
        whole = any([tap.spans[i].stop == tokens for tap in self.taps if i in tap.spans]) if self.taps else False
        return tokens if whole or tokens == 1 else tokens - 1  # something has to be read

    def handing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.layers is None else self.layers.handing(self.hand)

    def hand(self, layer: int, states: torch.Tensor) -> None:
        """Hand one layer's states to all who want them."""
        for tap in self.taps:
            tap.take(layer, states.flatten(0, 1))

    def place(self, where: Sequence[Ids], device: torch.device) -> None:
        for tap in self.taps:
            tap.place(where, device)

    def scored(self, passes: Sequence[Pass], where: Sequence[Ids]) -> tuple[list[Ids], list[TokenIds]]:
        """Return, per pass, where the states stand that predict its response, and the response's ids."""
        places, targets = [], list[TokenIds]()
        for i, pass_ in enumerate(passes):
            first = max(pass_.start, 1)
            places.append(where[i][first - 1 : len(pass_.ids) - 1] if self.nll[i] else where[i][:0])
            targets.append(pass_.ids[first:] if self.nll[i] else pass_.ids[:0])
        return places, targets


def packed(
    head: Head,
    passes: Sequence[Pass],
    device: torch.device,
    after: Sequence[After | None] = (),
    wanted: ReadRequest | None = None,
    attend: Varlen | None = None,
) -> Coming:
    """Read all sequences in one row, attention within each; a shared beginning is read once."""
    wanted = wanted or ReadRequest.likelihoods(passes)
    row = PackedRow()
    read = lengths_read(passes, after, wanted)
    for pass_, length, one in zip_longest(passes, read, after):
        row.add(pass_.ids[:length], one)
    if device.type == "cpu":
        row.even(PACK_EVEN)
    wanted.place(row.where, device)
    with segments(Cuts(row.lengths, row.before, device), attend):
        hidden = backbone_states(
            head,
            wanted,
            input_ids=to(joined(row.inputs)[None], device),
            position_ids=to(np.concatenate(row.positions)[None], device),
        )
    return through_head(head, hidden, *wanted.scored(passes, row.where))


def lengths_read(passes: Sequence[Pass], after: Sequence[After | None], wanted: ReadRequest) -> list[int]:
    """Count the tokens to read of each pass: what is wanted of it, and what others continue."""
    lengths = [wanted.length(i, pass_) for i, pass_ in enumerate(passes)]
    for one in after:
        if one is not None:
            lengths[one.place] = max(lengths[one.place], one.tokens)
    return lengths


@dataclass
class PackedRow:
    """A pack in the making: segments of one row, each with its positions.

    A GPU waits while this is done for some hundred short sequences: what is counted is a view of what was counted once.

    Attributes:
        where: of each sequence where its tokens stand in the row.
        before: of each segment the parts of the row that it continues.
    """

    inputs: list[TokenIds] = field(default_factory=list)
    positions: list[Ids] = field(default_factory=list)
    before: list[Seen] = field(default_factory=list)
    where: list[Ids] = field(default_factory=list)
    tokens: int = 0
    known: dict[After, Seen] = field(default_factory=dict, init=False)  # of what many continue

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.inputs]

    def add(self, ids: TokenIds, after: After | None) -> None:
        """Add a sequence, as far as it is not read in an earlier one."""
        own = ids if after is None else ids[after.tokens :]
        here = counted(self.tokens, self.tokens + len(own))
        self.where.append(here if after is None else np.concatenate([self.common(after), here]))
        if len(own):
            self.segment(own, counted(len(ids) - len(own), len(ids)), () if after is None else self.continued(after))

    def common(self, after: After) -> Ids:
        return self.where[after.place][: after.tokens]

    def continued(self, after: After) -> Seen:
        if after not in self.known:
            self.known[after] = runs(self.common(after))
        return self.known[after]

    def segment(self, ids: TokenIds, positions: Ids, before: Seen) -> None:
        self.inputs.append(ids)
        self.positions.append(positions)
        self.before.append(before)
        self.tokens += len(ids)

    def even(self, multiple: int) -> None:
        """Fill up with a segment of its own, read by nobody; counted up, it could switch a rotary scaling."""
        if filler := -self.tokens % multiple:
            self.segment(np.zeros(filler, dtype=np.int64), np.zeros(filler, dtype=np.int64), ())


def counted(start: int, stop: int) -> Ids:
    """Return the numbers from `start` to before `stop`, read-only."""
    return count_to(1 << max(15, stop.bit_length()))[start:stop]


@cache
def count_to(stop: int) -> Ids:
    numbers = np.arange(stop)
    numbers.setflags(write=False)
    return numbers


def joined(parts: Sequence[TokenIds]) -> Ids:
    return np.concatenate(parts).astype(np.int64, copy=False)


def runs(places: Ids) -> Seen:
    """Turn ascending places into slices of neighbours."""
    if not len(places):
        return ()
    if places[-1] - places[0] == len(places) - 1:
        return (slice(int(places[0]), int(places[-1]) + 1),)
    parts = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    return tuple(slice(int(part[0]), int(part[-1]) + 1) for part in parts)


def padded(head: Head, passes: Sequence[Pass], device: torch.device, wanted: ReadRequest | None = None) -> Coming:
    """Read right-padded rows: with causal attention no real token sees the padding."""
    wanted = wanted or ReadRequest.likelihoods(passes)
    read = [pass_.ids[: wanted.length(i, pass_)].astype(np.int64) for i, pass_ in enumerate(passes)]
    width = max(map(len, read))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in read])
    mask = np.stack([np.arange(width) < len(row) for row in read]).astype(np.int64)
    where = [np.arange(len(row)) + i * width for i, row in enumerate(read)]
    wanted.place(where, device)
    # A full mask of ones is left out: that lets the fused causal kernels run.
    given = None if mask.all() else to(mask, device)
    hidden = backbone_states(head, wanted, input_ids=to(ids, device), attention_mask=given)
    return through_head(head, hidden, *wanted.scored(passes, where))


def backbone_states(head: Head, wanted: ReadRequest, **inputs: torch.Tensor | None) -> torch.Tensor:
    """Return the backbone's last hidden states, and hand all layers to who wants them: (tokens, dim)."""
    layers = wanted.layers
    together = layers is not None and not layers.hooked
    with wanted.handing():
        more = {"output_hidden_states": True} if together else {}
        out = head.backbone(**inputs, use_cache=False, **more)
    last: torch.Tensor = out[0]
    if layers is not None:
        for layer, states in enumerate(out.hidden_states[:-1] if together else ()):
            wanted.hand(layer, states)
        wanted.hand(layers.count - 1, last)
    return last.flatten(0, 1)


def through_head(head: Head, hidden: torch.Tensor, places: Sequence[Ids], targets: Sequence[TokenIds]) -> Coming:
    """Return -log p of the targets of each pass, from the states of all tokens: (tokens, dim)."""
    lengths = [len(ids) for ids in targets]
    if not sum(lengths):
        return lambda: [NO_NLL for _ in lengths]
    at, ids = (to(joined(parts), hidden.device) for parts in (places, targets))
    values = fetched(head.nll(hidden[at], ids).float())
    return lambda: cut(values(), lengths)


def single(model: Any, passes: Sequence[Pass], device: torch.device, wanted: ReadRequest | None = None) -> Coming:
    """Read one by one through the model's own forward, full logits: slow, the reference for the other paths.

    Raises:
        ValueError: several passes whose hidden states are wanted.
    """
    wanted = wanted or ReadRequest.likelihoods(passes)
    if wanted.taps and len(passes) > 1:
        raise ValueError(f"{len(passes)} passes at once, whose states come one by one here")
    out = []
    for i, pass_ in enumerate(passes):
        ids = pass_.ids[: wanted.length(i, pass_)].astype(np.int64)
        found = model(input_ids=to(ids[None], device), use_cache=False, output_hidden_states=bool(wanted.taps))
        where = [np.arange(len(ids))]
        wanted.place(where, device)
        for layer, states in enumerate(found.hidden_states if wanted.taps else ()):
            wanted.hand(layer, states)
        (places,), (targets,) = ReadRequest([wanted.nll[i]]).scored([pass_], where)
        nll = token_nll(found.logits[0][to(places, device)], to(joined([targets]), device)) if len(targets) else None
        out.append(NO_NLL if nll is None else nll.float().cpu().numpy())
    return lambda: out


def cut(values: npt.NDArray[np.float32], lengths: Sequence[int]) -> list[TokenNlls]:
    ends = list(accumulate(lengths, initial=0))
    return [values[start:end] for start, end in pairwise(ends)]
