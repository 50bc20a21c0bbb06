"""What a scorer is: asks about an example, and a formula over the answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Ask, Count, Example, Nll, PassSpec, Problem

NOTHING_SCORED = Problem("no response token could be scored")
POOL = "pool:"  # before the ids of examples that come from another data set
LEARNED: Mapping[str, bool] = {"learned": True}  # marks a field that `prepare` fills and nobody sets


def given(example: Example) -> PassSpec:
    """Prompt and response."""
    return PassSpec("given", example)


def alone(example: Example) -> PassSpec:
    """The response without its prompt."""
    return PassSpec("alone", example)


def shown(example: Example, shots: Sequence[Example]) -> PassSpec:
    """Worked examples, prompt and response."""
    return PassSpec("shown", example, tuple(shots))


class Workbench(Protocol):
    """What a scorer may use to learn something from the whole data set before it asks about single examples."""

    @property
    def examples(self) -> Sequence[Example]:
        """All examples of the data set, in order, without their other columns."""

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        """The examples of another data set, read as this one is; their ids are `pool:` and the id of the content.

        What it is to the scorer stands in messages and in the run record.
        """

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        """A table that an earlier run has kept, by column."""

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        """Prompts as vectors of length 1: (examples, dim); computed once per text and encoder, then stored.

        A row of zeros belongs to a prompt without text, or one of which the encoder knows nothing.
        """

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        """What the model says to these asks, one mapping per example; read once, then stored as all answers are."""

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        """Write a table to the run folder, as `<name>.parquet`."""

    def note(self, name: str, value: Any) -> None:
        """Put a fact into the run record, under what was learned."""

    def say(self, text: str) -> None:
        """One line for the person who waits."""


@dataclass(frozen=True)
class Scorer(ABC):
    """One number per example; higher is more valuable to keep.

    A scorer is its settings and nothing else: it never calls a model, opens a file or makes a batch. It says what it
    wants to know (`asks`), and turns the answers into a number or a problem (`score`). Each of its examples is scored
    from that example's answers alone.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    reads: ClassVar[str]
    default_drop: ClassVar[str | None] = None
    whole_response: ClassVar[bool] = False  # too long, the prompt gives way, unless `--truncation` says otherwise
    also: ClassVar[tuple[str, ...]] = ()
    """What `more` gives: columns of the score table, named after the scorer: `cpqs_probability`."""
    partial: ClassVar[bool] = False
    """Whether `score` can do with some of the answers; asks that have a problem are then left out of them."""

    def prepare(self, bench: Workbench) -> Self:
        """The scorer with what it had to learn from the whole data set; itself where there is nothing to learn.

        What is learned lives in fields that are no settings:
        `field(default=None, metadata=LEARNED, repr=False, compare=False)`.
        """
        return self

    @abstractmethod
    def asks(self, example: Example) -> dict[str, Ask]:
        """What to read, under names of the scorer's own choosing."""

    @abstractmethod
    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        """The number, or why there is none; never NaN."""

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float]:
        """Further numbers from the same answers, under names in `also`; what there is none of is left out."""
        return {}


def nll(answers: Mapping[str, Answer], name: str) -> Nll:
    answer = answers[name]
    assert isinstance(answer, Nll), f"`{name}` is {type(answer).__name__}"
    return answer


def count(answers: Mapping[str, Answer], name: str) -> Count:
    answer = answers[name]
    assert isinstance(answer, Count), f"`{name}` is {type(answer).__name__}"
    return answer


def settings_of(thing: Any) -> list[Field[Any]]:
    """The fields of a scorer or selector, or of its class, that are settings: given by people, not learned."""
    return [one for one in fields(thing) if one.init and not one.metadata.get("learned")]


def learns(scorer: Scorer) -> bool:
    """Whether it must be prepared before it can be asked."""
    return type(scorer).prepare is not Scorer.prepare


def content_of(id_: str) -> str:
    """What examples of the same content have in common in their ids, wherever they come from."""
    return id_.removeprefix(POOL).partition("-")[0]


def same_tokens(one: Nll, other: Nll) -> tuple[Nll, Nll]:
    """Two passes over one response, less its first token in both where one of them could not score it."""
    if one.tokens > other.tokens:
        return one.without_first(), other
    if other.tokens > one.tokens:
        return one, other.without_first()
    return one, other


def finite(value: float, what: str) -> float | Problem:
    """A number that may be infinite or undefined, as a score or as a problem that says so."""
    return value if math.isfinite(value) else Problem(f"{what} is not finite")
