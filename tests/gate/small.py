"""Records and hidden states of which the truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tithe.gate.probes import Drawn
from tithe.records import Example, Message

LAYERS, PARTS, DIM = 2, 3, 4
KINDS = ("cut", "echo")


def record(name: str, prompt: str, response: str, row: int = 0) -> Example:
    return Example(name, row, 1, (Message("user", prompt),), Message("assistant", response))


def pool_of(count: int, words: int = 9) -> list[Example]:
    """Records that differ in prompt and response, long enough for every kind that needs no digits."""
    return [
        record(f"{i:04x}", f"Tell me about thing{i}, please.", " ".join(f"word{i}x{j}" for j in range(words)) + ".", i)
        for i in range(count)
    ]


def states_of(count: int, seed: int, *, shift: float, own: float = 0.0) -> npt.NDArray[np.float32]:
    """Draw the states of some records, then those of their copies: (2 * count, layers, parts, dim).

    Args:
        count: records.
        seed: random seed.
        shift: by which the first component of a copy's response differs, in standard deviations.
        own: size of a part that a record shares with its copy, and with nothing else.
    """
    random = np.random.default_rng(seed)
    noise = random.normal(size=(2 * count, LAYERS, PARTS, DIM))
    shared = random.normal(size=(count, LAYERS, PARTS, DIM))
    noise += own * np.concatenate([shared, shared])
    noise[count:, :, 1, 0] -= shift
    return noise.astype(np.float32)


def drawn_of(states: npt.NDArray[np.float32]) -> Drawn:
    """Records and copies in the order of `states_of`, the kinds of the copies in turn."""
    count = len(states) // 2
    kinds = [""] * count + [KINDS[i % 2] for i in range(count)]
    losses = np.random.default_rng(count).normal(2.0, 0.5, 2 * count)  # which says nothing
    return Drawn(states, np.array(kinds), np.tile(np.arange(count), 2), losses, np.ones(2 * count))
