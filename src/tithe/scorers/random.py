"""A random number: a baseline for every other score."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """High: nothing; a uniform draw from the seed and the example's id, whatever the order of the file.

    Formula:  the first 53 bits of blake2b(seed, id), over 2^53
    Reads:    nothing
    Range:    0 to below 1, uniform

    Args:
        seed: another seed, another draw.
    """

    name: ClassVar[str] = "random"
    unit: ClassVar[str] = "uniform draw"
    reads: ClassVar[str] = "nothing"

    seed: int = 0

    def asks(self, example: Example) -> dict[str, Ask]:
        return {}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        digest = hashlib.blake2b(f"{self.seed}|{example.id}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits fill the mantissa of a float64
