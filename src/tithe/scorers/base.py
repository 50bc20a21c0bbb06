"""What a scorer is: asks about an example, and a formula over the answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Count, Example, Nll, PassSpec, Problem

NOTHING_SCORED = Problem("no response token could be scored")


def given(example: Example) -> PassSpec:
    """Prompt and response."""
    return PassSpec("given", example)


def alone(example: Example) -> PassSpec:
    """The response without its prompt."""
    return PassSpec("alone", example)


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
