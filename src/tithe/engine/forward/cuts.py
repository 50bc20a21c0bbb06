"""How a row of tokens is cut into sequences, in the formats that attention kernels take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

BLOCK = 128  # queries and keys per tile of FlexAttention
Seen: TypeAlias = tuple[slice, ...]  # slices of the row, in order of position
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cuts:
    """The segments of a row and what each of them sees; its tensors are made once for all layers.

    A kernel that only takes lengths needs the keys of a segment next to each other: the keys of the prefix it continues
    are copied in front of its own. If no segment continues another, the row is used as it is.

    Args:
        lengths: tokens of each segment, in order, none of them 0; they add up to the row.
        before: for each segment the tokens of earlier segments that it continues and therefore sees, from position 0
            on; empty if no segment continues another.
        device: where the attention runs.
    """

    lengths: Sequence[int]
    before: Sequence[Seen] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    masks: dict[int | None, Any] = field(default_factory=dict, init=False, repr=False)  # by sliding window
    squares: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    copies: dict[torch.device, Cuts] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> Cuts:
        """Return these cuts on another device, for a model that is spread over several; each copy is made once."""
        if device == self.device:
            return self
        if device not in self.copies:
            self.copies[device] = Cuts(self.lengths, self.before, device)
        return self.copies[device]

    @cached_property
    def own(self) -> Ints:
        """Return the number of queries of each segment: (segments,)."""
        return np.asarray(self.lengths, dtype=np.int64)

    @cached_property
    def seen(self) -> Ints:
        """Return the number of earlier tokens that each segment continues: (segments,)."""
        before = self.before or [()] * len(self.lengths)
        return np.array([sum(part.stop - part.start for part in parts) for parts in before], dtype=np.int64)

    @property
    def all(self) -> Ints:
        """Return the number of keys of each segment: (segments,)."""
        return self.own + self.seen

    @property
    def tokens(self) -> int:
        return int(self.own.sum())

    @property
    def pairs(self) -> int:
        """Count the query-key pairs that attention multiplies if there is no sliding window."""
        return int((self.own * self.seen + self.own * (self.own + 1) // 2).sum())

    @cached_property
    def longest_query(self) -> int:
        return int(self.own.max())

    @cached_property
    def longest_key(self) -> int:
        return int(self.all.max())

    @cached_property
    def query_ends(self) -> torch.Tensor:
        """Return the cumulative number of queries: (segments + 1,) int32, beginning with 0."""
        return self._ends(self.own)

    @cached_property
    def key_ends(self) -> torch.Tensor:
        """Return the cumulative number of keys: (segments + 1,) int32, beginning with 0."""
        return self._ends(self.all) if self.seen.any() else self.query_ends

    @cached_property
    def keys(self) -> torch.Tensor | None:
        """Return each key's place in the row: (keys,); None if the keys are the row itself."""
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
        # All slices as one array of indices: each run counts on from its own start.
        return self._on_device(np.arange(ends[-1]) + np.repeat(np.array(starts) - ends + many, many))

    def gathered(self, rows: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Gather keys or values in the order in which segments see them."""
        return rows if self.keys is None else rows.index_select(dim, self.keys)

    def visible(self, tokens: int, before: int, window: int | None = None) -> torch.Tensor:
        """Return which keys each query of one segment sees: (tokens, before + tokens) bool, cached by shape."""
        shape = (tokens, before, window)
        if shape not in self.squares:
            at = torch.arange(before, before + tokens, device=self.device)
            distance = at[:, None] - torch.arange(before + tokens, device=self.device)[None, :]
            seen = distance >= 0
            self.squares[shape] = seen if window is None else seen & (distance < window)
        return self.squares[shape]

    def block_mask(self, window: int | None = None) -> Any:
        """Return FlexAttention's mask; its tiles follow from the segment borders, without a matrix of all pairs."""
        if window not in self.masks:
            self.masks[window] = self._block_mask(window)
        return self.masks[window]

    def _block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        queries, keys = self.tokens, int(self.all.sum())
        # Segments are in the same order as their keys, so the keys that a tile of queries sees are one run of tiles.
        firsts = np.arange(0, queries, BLOCK)
        of_query = np.repeat(np.arange(len(self.own)), self.own)
        ends = np.cumsum(self.all)
        low = (ends - self.all)[of_query[firsts]] // BLOCK
        high = -(-ends[of_query[np.minimum(firsts + BLOCK, queries) - 1]] // BLOCK)
        tiles = np.arange(-(-keys // BLOCK))
        table = (low[:, None] + tiles) % len(tiles)  # (query tiles, key tiles): visible ones first, the rest is ignored
        return BlockMask.from_kv_blocks(
            self._on_device((high - low).astype(np.int32))[None, None],
            self._on_device(table.astype(np.int32))[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=self.mask_mod(window),
            seq_lengths=(queries, keys),
            **without_backward_table(BlockMask.from_kv_blocks),
        )

    def mask_mod(self, window: int | None = None) -> Any:
        """Return a function that tells whether a query sees a key: same segment, not later, within the window."""
        of_query, at_query = self._places(self.own, self.seen)
        of_key, at_key = self._places(self.all, np.zeros_like(self.all))
        # A tensor, as Python numbers do not always compile into a kernel.
        first = None if window is None else at_query - (window - 1)

        def seen(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
            inside = (of_query[query] == of_key[key]) & (at_key[key] <= at_query[query])
            return inside if first is None else inside & (at_key[key] >= first[query])

        return seen

    def _places(self, lengths: Ints, first: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's segment, and its position in it, counted from `first`."""
        starts = np.cumsum(lengths) - lengths - first
        of = np.repeat(np.arange(len(lengths)), lengths)
        return self._on_device(of), self._on_device(np.arange(len(of)) - starts[of])

    def _ends(self, lengths: Ints) -> torch.Tensor:
        return self._on_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

    def _on_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


@cache
def without_backward_table(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the argument that skips a mask's table for the backward pass, which torch has since 2.9."""
    return {"compute_q_blocks": False} if "compute_q_blocks" in signature(make).parameters else {}
