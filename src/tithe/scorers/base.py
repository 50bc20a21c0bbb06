"""What a scorer is: asks about an example, and a formula over the answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Ask, Count, Example, Nll, PassSpec, Problem

NOTHING_SCORED = Problem("no response token could be scored")
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

    def load(self, path: str) -> Sequence[Example]:
        """The examples of another data set, read as this one is."""

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        """Prompts as vectors of length 1: (examples, dim); computed once per text and encoder, then stored."""

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

    def prepare(self, bench: Workbench) -> Self:
        """The scorer with what it had to learn from the whole data set; itself where there is nothing to learn.

        What is learned lives in fields that are no settings: `field(metadata=LEARNED, repr=False, compare=False)`.
        """
        return self

    @abstractmethod
    def asks(self, example: Example) -> dict[str, Ask]:
        """What to read, under names of the scorer's own choosing."""

    @abstractmethod
    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        """The number, or why there is none; never NaN."""


def nll(answers: Mapping[str, Answer], name: str) -> Nll:
    answer = answers[name]
    assert isinstance(answer, Nll), f"`{name}` is {type(answer).__name__}"
    return answer


def count(answers: Mapping[str, Answer], name: str) -> Count:
    answer = answers[name]
    assert isinstance(answer, Count), f"`{name}` is {type(answer).__name__}"
    return answer


def finite(value: float, what: str) -> float | Problem:
    """A number that may be infinite or undefined, as a score or as a problem that says so."""
    return value if math.isfinite(value) else Problem(f"{what} is not finite")
