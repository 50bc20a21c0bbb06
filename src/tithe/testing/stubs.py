"""A workbench of made-up vectors and answers: to see what scorers will ask for, before any model is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe import plugins
from tithe.records import Answer, Ask, Example, Problem

DIMS = 8


@dataclass(frozen=True)
class StubBench:
    """Gives neighbours by chance, drawn by the ids; how many, and of which lengths, is as in the data.

    Args:
        examples: the data set.
        read: reads another one.
        tables: reads a table of an earlier run.
        asked: is told of all asks.
        sample: ids of examples that are nearer to each other than to any other; empty where chance decides alone.
    """

    examples: Sequence[Example]
    read: Callable[[str, str], Sequence[Example]]
    tables: Callable[[str], Mapping[str, Sequence[Any]]]
    asked: Callable[[Sequence[Mapping[str, Ask]]], object] = lambda _: None
    sample: frozenset[str] = frozenset()

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        return self.read(path, what)

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        return self.tables(path)

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        lots = np.array([lot(example.id) for example in examples]).reshape(len(examples), DIMS)
        vectors: npt.NDArray[np.float32] = (lots / np.linalg.norm(lots, axis=1, keepdims=True)).astype(np.float32)
        if self.sample:  # cosines are (c + 1) / 2 within it and (c - 1) / 2 across its border: its own order stays
            side = np.array([[1 if example.id in self.sample else -1] for example in examples], dtype=np.float32)
            vectors = np.hstack([vectors, side]) / np.sqrt(np.float32(2))
        return vectors

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        self.asked(asks)
        return [{name: made_up(ask) for name, ask in each.items()} for each in asks]

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        """Made-up tables are kept nowhere."""

    def note(self, name: str, value: Any) -> None:
        """Nor are made-up facts."""

    def say(self, text: str) -> None:
        """Nor told."""


def lot(text: str) -> npt.NDArray[np.float64]:
    """(dims,) numbers between -0.5 and 0.5, never all zero."""
    drawn = hashlib.blake2b(text.encode(), digest_size=2 * DIMS).digest()
    return (np.frombuffer(drawn, dtype="<u2").astype(np.float64) + 0.5) / 65536 - 0.5


def made_up(ask: Ask) -> Answer:
    """Return an answer of the kind that the ask's readout gives; context helps, as it does in a model.

    Raises:
        SettingsError: there is no such readout.
    """
    kind, _, argument = ask.readout.partition(":")
    usual = 2 if ask.spec.kind == "alone" else 1
    mean = usual + float(abs(lot(ask.spec.kind + ask.spec.dialogue.id)[0]))
    return plugins.readout(kind).made_up(argument, 1, mean, True)
