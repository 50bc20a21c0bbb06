"""A workbench whose vectors and likelihoods are written in the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Ask, Example, Message, Nll, Problem
from tithe.testing import FakeBench

NEEDED = {"rds": "rds(target=x)"}  # what has to be set before a scorer can be prepared at all


def spec_of(name: str) -> str:
    """A registered scorer, with what has to be set."""
    return NEEDED.get(name, name)


def example(name: str, row: int = 0) -> Example:
    return Example(name, row, 1, (Message("user", f"prompt of {name}"),), Message("assistant", "yes"))


def nll(mean: float, tokens: int = 10) -> Nll:
    return Nll(mean * tokens, tokens, mean)


@dataclass
class Bench(FakeBench):
    """Args:
    vectors: by id; made to length 1.
    means: (pass, id) -> mean NLL, 1 where nothing is said, or a problem.
    """

    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    means: Mapping[tuple[str, str], float | Problem] = field(default_factory=dict)
    embedded: list[tuple[int, str]] = field(default_factory=list)

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        self.embedded.append((len(examples), encoder))
        rows = np.array([self.vectors[one.id.removeprefix("pool:").partition("-")[0]] for one in examples], np.float64)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        made: npt.NDArray[np.float32] = (rows / np.where(length > 0, length, 1)).astype(np.float32)
        return made

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> list[dict[str, Answer | Problem]]:
        def one(ask: Ask) -> Any:
            found = self.means.get((ask.spec.kind, ask.spec.example.id), 1.0)
            return found if isinstance(found, Problem) else nll(found)

        return [{name: one(ask) for name, ask in each.items()} for each in asks]


def angle(degrees: float) -> tuple[float, float]:
    return (float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees))))
