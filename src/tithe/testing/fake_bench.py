"""A workbench of made-up vectors and answers, for the contract of scorers that prepare."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe import plugins
from tithe.records import Answer, Ask, Example, Message, Nll, Problem
from tithe.scorers.base import POOL

Fabricate: TypeAlias = Callable[[int, float, bool], Answer]

TOKENS = (1, 2, 3, 40, 700)
MEANS = (0.0, 1e-6, 0.7, 2.3, 11.0, 60.0)  # nats per token: certain, ordinary, and worse than any guess


def fabricated(asks: Mapping[str, Ask], known: Mapping[str, Fabricate]) -> list[dict[str, Answer]]:
    """Answers of several lengths and likelihoods; the passes differ in both, and in whether the first token counts."""
    return [
        {
            key: answer(ask, known, tokens, MEANS[(i + j + 2 * k) % len(MEANS)], first or k % 2 == 0)
            for k, (key, ask) in enumerate(asks.items())
        }
        for i, tokens in enumerate(TOKENS)
        for j in range(len(MEANS))
        for first in (True, False)
    ]


def answer(ask: Ask, known: Mapping[str, Fabricate], tokens: int, mean: float, first: bool) -> Answer:
    """The answer to one ask; its readout is known."""
    fabricate = lookup(ask.readout, known)
    assert fabricate is not None, ask.readout
    return fabricate(tokens, mean, first)


def lookup(readout: str, known: Mapping[str, Fabricate]) -> Fabricate | None:
    """Return what fabricates the answers of a readout: as given, or as the registered readout says; None for neither.

    Args:
        readout: by name, or with an argument: `head:folder` is a `head`.
        known: readout -> what fabricates its answers.
    """
    name, _, argument = readout.partition(":")
    own = known.get(readout) or known.get(name)
    if own is not None or name not in plugins.names(plugins.READOUTS):
        return own
    return partial(plugins.readout(name).made_up, argument)


def describe(answers: Mapping[str, Answer]) -> str:
    """Answers in a line of a failure message."""
    parts = [
        f"{key}: {one.total:.4g} nats over {one.tokens} tokens" if isinstance(one, Nll) else f"{key}: {one}"
        for key, one in answers.items()
    ]
    return f"({', '.join(parts)})"


def _example(row: int, instruction: str, extra: str, response: str) -> Example:
    prompt = (Message("user", f"{instruction}\n{extra}" if extra else instruction),)
    columns = {"source": "web"} if row % 2 else {}
    reply = Message("assistant", response)
    return Example(f"{row:032x}", row, 1, prompt, reply, instruction, extra, columns=columns, where=f"test:{row}")


EXAMPLES = (
    _example(0, "Name the capital of France.", "", "Paris."),
    _example(1, "Translate to German.", "Good morning", "Guten Morgen"),
    _example(2, "Say nothing.", "", "."),
    _example(3, "Write an emoji.", "", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"),
)


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
