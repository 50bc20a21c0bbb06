"""How a row of tokens is cut into sequences, in the forms that attention kernels take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

BLOCK = 128  # queries and keys of a tile of FlexAttention
Seen: TypeAlias = tuple[slice, ...]  # tokens of the row, in the order of their positions
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cuts:
    """The segments of a row, and what each sees; made once for all layers.

    A kernel that takes lengths alone is given the keys that a segment sees one after another: those that it continues
    are copied before its own. Where nothing is continued the row itself is used.

    Args:
        lengths: tokens of each segment, in order, none of them 0; their sum is the row.
        before: per segment the tokens of earlier segments that it continues and therefore sees, from the first
            position on; empty where no segment continues another.
        device: where the attention runs.
    """

    lengths: Sequence[int]
    before: Sequence[Seen] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    masks: dict[int | None, Any] = field(default_factory=dict, init=False, repr=False)  # by sliding window
    squares: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    copies: dict[torch.device, Cuts] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> Cuts:
        """Return these cuts for layers on another device; each copy is made once."""
        if device == self.device:
            return self
        if device not in self.copies:
            self.copies[device] = Cuts(self.lengths, self.before, device)
        return self.copies[device]

    @cached_property
    def own(self) -> Ints:
        """Return (segments,) the queries of each segment."""
        return np.asarray(self.lengths, dtype=np.int64)

    @cached_property
    def seen(self) -> Ints:
        """Return (segments,) how many earlier tokens each continues."""
        before = self.before or [()] * len(self.lengths)
        return np.array([sum(part.stop - part.start for part in parts) for parts in before], dtype=np.int64)

    @property
    def all(self) -> Ints:
        """Return (segments,) the keys of each segment."""
        return self.own + self.seen

    @property
    def tokens(self) -> int:
        return int(self.own.sum())

    @property
    def pairs(self) -> int:
        """Count the pairs of a query and a key it sees, without a sliding window: what attention must multiply."""
        return int((self.own * self.seen + self.own * (self.own + 1) // 2).sum())

    @cached_property
    def longest_query(self) -> int:
        return int(self.own.max())

    @cached_property
    def longest_key(self) -> int:
        return int(self.all.max())

    @cached_property
    def query_ends(self) -> torch.Tensor:
        """Return (segments + 1,) int32, 0 first."""
        return self._ends(self.own)

    @cached_property
    def key_ends(self) -> torch.Tensor:
        return self._ends(self.all) if self.seen.any() else self.query_ends

    @cached_property
    def keys(self) -> torch.Tensor | None:
        """Return (keys,) where in the row each stands; None where the keys are the row."""
        if not self.seen.any():
            return None
        starts, lengths, here = list[int](), list[int](), 0
        for earlier, own in zip(self.before, self.lengths, strict=True):
            for part in (*earlier, slice(here, here + own)):
                starts.append(part.start)
                lengths.append(part.stop - part.start)
            here += own
        many = np.array(lengths)
        ends = np.cumsum(many)
        return self._there(np.arange(ends[-1]) + np.repeat(np.array(starts) - ends + many, many))

    def gathered(self, rows: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return keys or values in the order in which segments see them."""
        return rows if self.keys is None else rows.index_select(dim, self.keys)

    def visible(self, tokens: int, before: int, window: int | None = None) -> torch.Tensor:
        """Return which keys each query of one segment sees: (tokens, before + tokens) bool, made once a shape."""
        shape = (tokens, before, window)
        if shape not in self.squares:
            at = torch.arange(before, before + tokens, device=self.device)
            distance = at[:, None] - torch.arange(before + tokens, device=self.device)[None, :]
            seen = distance >= 0
            self.squares[shape] = seen if window is None else seen & (distance < window)
        return self.squares[shape]

    def block_mask(self, window: int | None = None) -> Any:
        """Make FlexAttention's mask, its tiles found from the segments' borders; no matrix of all pairs is made."""
        if window not in self.masks:
            self.masks[window] = self._block_mask(window)
        return self.masks[window]

    def _block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        queries, keys = self.tokens, int(self.all.sum())
        # Segments stand in the order of their keys: what a tile of queries sees is one run of tiles.
        firsts = np.arange(0, queries, BLOCK)
        of_query = np.repeat(np.arange(len(self.own)), self.own)
        ends = np.cumsum(self.all)
        low = (ends - self.all)[of_query[firsts]] // BLOCK
        high = -(-ends[of_query[np.minimum(firsts + BLOCK, queries) - 1]] // BLOCK)
        tiles = np.arange(-(-keys // BLOCK))
        table = (low[:, None] + tiles) % len(tiles)  # those that count come first
        return BlockMask.from_kv_blocks(
            self._there((high - low).astype(np.int32))[None, None],
            self._there(table.astype(np.int32))[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=self.mask_mod(window),
            seq_lengths=(queries, keys),
            **forward_alone(BlockMask.from_kv_blocks),
        )

    def mask_mod(self, window: int | None = None) -> Any:
        """Tell whether a query sees a key: of its segment, not later, and within the window."""
        of_query, at_query = self._places(self.own, self.seen)
        of_key, at_key = self._places(self.all, np.zeros_like(self.all))
        # A tensor: numbers of Python's do not always compile into a kernel.
        first = None if window is None else at_query - (window - 1)

        def seen(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
            inside = (of_query[query] == of_key[key]) & (at_key[key] <= at_query[query])
            return inside if first is None else inside & (at_key[key] >= first[query])

        return seen

    def _places(self, lengths: Ints, first: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's segment, and its position there, which begins with `first`."""
        starts = np.cumsum(lengths) - lengths - first
        of = np.repeat(np.arange(len(lengths)), lengths)
        return self._there(of), self._there(np.arange(len(of)) - starts[of])

    def _ends(self, lengths: Ints) -> torch.Tensor:
        return self._there(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

    def _there(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


@cache
def forward_alone(make: Callable[..., Any]) -> dict[str, Any]:
    """How a mask is told to leave out its table for the backward pass, where it can be told (torch 2.9)."""
    return {"compute_q_blocks": False} if "compute_q_blocks" in signature(make).parameters else {}
