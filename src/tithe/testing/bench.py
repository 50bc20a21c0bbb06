"""A workbench of made-up vectors and answers, for the contract of scorers that prepare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import POOL
from tithe.testing.fabricate import EXAMPLES, MEANS, TOKENS, Fabricate, answer

DIMS = 6


@dataclass
class FakeBench:
    """What a scorer can prepare with where there is neither model nor file; what it is told is there to be looked at.

    Args:
        examples: the data set.
        known: readout -> how its answers are made up, where that is not as the registered one says.
        pool: what `load` gives, under ids of its own.
        earlier: what `table` gives, by column.
        kept: tables, by name.
        notes: facts, by name.
        said: lines.
    """

    examples: Sequence[Example] = EXAMPLES
    known: Mapping[str, Fabricate] = field(default_factory=dict)
    pool: Sequence[Example] = EXAMPLES
    earlier: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        return [replace(example, id=f"{POOL}{example.id}") for example in self.pool]

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        return self.earlier

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        """Directions drawn by the prompts' text: equal prompts have equal vectors."""
        drawn = [np.frombuffer(digest(text_of(one), 2 * DIMS), dtype="<u2").astype(np.float64) for one in examples]
        lots = np.array(drawn).reshape(len(examples), DIMS) - 32767.5
        vectors: npt.NDArray[np.float32] = (lots / np.linalg.norm(lots, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        """Drawn by pass and response; all passes over one response have its number of tokens."""
        return [{name: self.answer(ask) for name, ask in each.items()} for each in asks]

    def answer(self, ask: Ask) -> Answer:
        length = digest(ask.spec.example.id, 1)[0] % (len(TOKENS) - 1)
        mean = digest(f"{ask.spec.kind} {ask.spec.example.id} {[one.id for one in ask.spec.shots]}", 1)[0]
        return answer(ask, self.known, TOKENS[length], MEANS[1 + mean % (len(MEANS) - 1)], ask.spec.kind != "alone")

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        lengths = {len(column) for column in columns.values()}
        assert len(lengths) == 1, f"the columns of the table `{name}` have different lengths: {lengths}"
        self.kept[name] = dict(columns)

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value

    def say(self, text: str) -> None:
        self.said.append(text)


def digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def text_of(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt)
