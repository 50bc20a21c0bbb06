"""Stub workbenches: made-up examples, vectors and answers, so that scorers can prepare without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe import plugins
from tithe.records import Answer, Ask, Example, Message, Nll, Problem
from tithe.scorers.base import POOL

if TYPE_CHECKING:
    from tithe.gate.damage import Damage
    from tithe.gate.probes import Probes

Fabricate: TypeAlias = Callable[[int, float, bool], Answer]

TOKENS = (1, 2, 3, 40, 700)
MEANS = (0.0, 1e-6, 0.7, 2.3, 11.0, 60.0)  # nats per token: certain, ordinary, and worse than any guess
DIMS = 8


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


@dataclass
class FakeBench:
    """A stub workbench without model and files. What a scorer tells it is kept, so that a test can look at it.

    Args:
        examples: the data set.
        known: readout -> how to make up its answers, if not as the registered readout does.
        pool: what `load` returns, under other ids.
        earlier: what `table` returns, by column.
        kept: the tables that were kept, by name.
        notes: the facts that were noted, by name.
        said: the lines that were said.
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
        """Draw directions by the prompts' text: equal prompts have equal vectors."""
        return directions(["\n".join(message.content for message in one.prompt) for one in examples])

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        return [{name: self.answer(ask) for name, ask in each.items()} for each in asks]

    def answer(self, ask: Ask) -> Answer:
        """Draw an answer by pass and response; all passes over one response have the same number of tokens."""
        length = digest(ask.spec.example.id, 1)[0] % (len(TOKENS) - 1)
        mean = digest(f"{ask.spec.kind} {ask.spec.example.id} {[one.id for one in ask.spec.shots]}", 1)[0]
        make = fabricate(ask, self.known)
        return make(TOKENS[length], MEANS[1 + mean % (len(MEANS) - 1)], ask.spec.kind != "alone")

    @property
    def made_up(self) -> bool:
        return True

    def damage_kinds(self, names: Sequence[str] = ()) -> Mapping[str, Damage]:
        return plugins.damage_kinds(names)

    def keep_probes(self, probes: Probes) -> None:
        raise AssertionError("nothing can be fitted to made-up answers")

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        lengths = {len(column) for column in columns.values()}
        assert len(lengths) == 1, f"the columns of the table `{name}` have different lengths: {lengths}"
        self.kept[name] = dict(columns)

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(kw_only=True)
class PlanBench(FakeBench):
    """A stub workbench on real data, to see what scorers will ask before any model is loaded.

    Neighbours are random, drawn by the ids; their number and their lengths are as in the data.

    Args:
        read: reads another data set.
        tables: reads a table of an earlier run.
        asked: called with all asks.
        sample: ids of examples that are nearer to each other than to any other; empty for no such group.
    """

    read: Callable[[str, str], Sequence[Example]]
    tables: Callable[[str], Mapping[str, Sequence[Any]]]
    asked: Callable[[Sequence[Mapping[str, Ask]]], object] = lambda _: None
    sample: frozenset[str] = frozenset()

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        return self.read(path, what)

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        return self.tables(path)

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        vectors = directions([example.id for example in examples])
        if self.sample:
            # With ±1 appended, cosines become (c + 1) / 2 within the sample and (c - 1) / 2 across its border: the
            # sample is nearest to itself, and the order within it does not change.
            side = np.array([[1 if example.id in self.sample else -1] for example in examples], dtype=np.float32)
            vectors = np.hstack([vectors, side]) / np.sqrt(np.float32(2))
        return vectors

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        self.asked(asks)
        return super().answers(asks)

    def answer(self, ask: Ask) -> Answer:
        """Draw an answer of one token in which context helps, as it does in a model.

        Raises:
            SettingsError: there is no such readout.
        """
        kind, _, argument = ask.readout.partition(":")
        usual = 2 if ask.spec.kind == "alone" else 1
        mean = usual + float(abs(lots(ask.spec.kind + ask.spec.dialogue.id)[0]))
        return plugins.readout(kind).made_up(argument, 1, mean, True)


def directions(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Draw a vector of length 1 by each text: (texts, dims)."""
    drawn = np.array([lots(text) for text in texts]).reshape(len(texts), DIMS)
    vectors: npt.NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def lots(text: str) -> npt.NDArray[np.float64]:
    """Draw (dims,) numbers between -0.5 and 0.5, never zero."""
    return (np.frombuffer(digest(text, 2 * DIMS), dtype="<u2").astype(np.float64) + 0.5) / 65536 - 0.5


def digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def fabricated(asks: Mapping[str, Ask], known: Mapping[str, Fabricate]) -> list[dict[str, Answer]]:
    """Make up answers of several lengths and likelihoods.

    The passes differ in their likelihoods, and in whether the first token counts.
    """
    functions = {key: fabricate(ask, known) for key, ask in asks.items()}  # looked up once, not for each combination
    return [
        {
            key: make(tokens, MEANS[(i + j + 2 * k) % len(MEANS)], first or k % 2 == 0)
            for k, (key, make) in enumerate(functions.items())
        }
        for i, tokens in enumerate(TOKENS)
        for j in range(len(MEANS))
        for first in (True, False)
    ]


def fabricate(ask: Ask, known: Mapping[str, Fabricate]) -> Fabricate:
    """Return the function that makes up answers to an ask, whose readout must be known."""
    found = lookup(ask.readout, known)
    assert found is not None, ask.readout
    return found


def lookup(readout: str, known: Mapping[str, Fabricate]) -> Fabricate | None:
    """Return the function that makes up a readout's answers: the given one, else the registered readout's, else None.

    Args:
        readout: a name, possibly with an argument: `head:folder` is a `head`.
        known: readout -> the function that makes up its answers.
    """
    name, _, argument = readout.partition(":")
    own = known.get(readout) or known.get(name)
    if own is not None or name not in plugins.names(plugins.READOUTS):
        return own
    return partial(plugins.readout(name).made_up, argument)


def describe(answers: Mapping[str, Answer]) -> str:
    """Format answers as one line of a failure message."""
    parts = [
        f"{key}: {one.total:.4g} nats over {one.tokens} tokens" if isinstance(one, Nll) else f"{key}: {one}"
        for key, one in answers.items()
    ]
    return f"({', '.join(parts)})"
