"""Where the answers of a folder lie, by their keys: 20 bytes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# All have 16 bytes, so that it does no harm that NUL ends a text of NumPy's.
Keys: TypeAlias = npt.NDArray[np.bytes_]
Places: TypeAlias = npt.NDArray[np.int32]


def as_keys(keys: Sequence[bytes]) -> Keys:
    """(keys,) `S16`."""
    return np.frombuffer(b"".join(keys), dtype="S16")


class KeyIndex:
    """Keys of 16 bytes -> numbers counted up, which only grows.

    Sorted blocks, a later one at most half as long as the one before; so there are few, and a key is moved only as many
    times as the whole has doubled.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[Keys, Places]] = []
        self.count = 0  # keys taken in, those that came twice included

    def __len__(self) -> int:
        """Different keys, where a block is met only by keys that are new to all others."""
        return sum(len(keys) for keys, _ in self.blocks)

    def extend(self, keys: Keys) -> None:
        """Take in the next keys; of those that were there before, the first place stands."""
        new, first = np.unique(keys, return_index=True)
        fresh = self.find(new) < 0
        self.blocks.append((new[fresh], (first[fresh] + self.count).astype(np.int32)))
        self.count += len(keys)
        while len(self.blocks) > 1 and 2 * len(self.blocks[-1][0]) > len(self.blocks[-2][0]):
            (a, at), (b, bt) = self.blocks[-2:]
            self.blocks[-2:] = [merged(a, at, b, bt)]

    def find(self, keys: Keys) -> Places:
        """(keys,) places, -1 where there is none."""
        found = np.full(len(keys), -1, dtype=np.int32)
        for known, places in self.blocks:
            if len(known):
                at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
                hit = known[at] == keys
                found[hit] = places[at[hit]]
        return found


def merged(a: Keys, at: Places, b: Keys, bt: Places) -> tuple[Keys, Places]:
    """Two sorted blocks without a key in common as one."""
    order = np.argsort(np.concatenate([a, b]), kind="stable").astype(np.int32)  # which makes use of both being sorted
    return np.concatenate([a, b])[order], np.concatenate([at, bt])[order]
