"""Define a scorer: asks about an example, and a formula over the answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from tithe.records import Answer, Ask, Count, Example, Nll, PassSpec, Problem

if TYPE_CHECKING:
    from tithe.gate.damage import Damage
    from tithe.gate.probes import Probes

NOTHING_SCORED = Problem("no response token could be scored")
POOL = "pool:"  # id prefix of examples from another data set
LEARNED: Mapping[str, bool] = {"learned": True}  # marks a field that `prepare` fills and users cannot set


def given(example: Example) -> PassSpec:
    """Return the pass over prompt and response."""
    return PassSpec("given", example)


def alone(example: Example) -> PassSpec:
    """Return the pass over the response without its prompt."""
    return PassSpec("alone", example)


def shown(example: Example, shots: Sequence[Example]) -> PassSpec:
    """Return the pass over worked examples, prompt and response."""
    return PassSpec("shown", example, tuple(shots))


class Workbench(Protocol):
    """What a scorer may use to learn from the whole data set before it asks about single examples."""

    @property
    def examples(self) -> Sequence[Example]:
        """All examples of the data set, in order, without their other columns."""

    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        """Read the examples of another data set like this one; their ids are `pool:` and the id of the content.

        Messages and the run record call the data set `what`.
        """

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        """Read a table that an earlier run kept, by column."""

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        """Embed prompts as vectors of length 1: (examples, dim); computed once per text and encoder, then stored.

        The row is zero for a prompt without text, or one that the encoder knows nothing about.
        """

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        """Read what the model answers to these asks, one mapping per example; stored like all answers."""

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        """Write a table to the run folder, as `<name>.parquet`."""

    def damage_kinds(self, names: Sequence[str] = ()) -> Mapping[str, Damage]:
        """Return kinds of damage by name: those named, or all that are installed."""

    def keep_probes(self, probes: Probes) -> None:
        """From now on the readout `probes` gives the outputs of these."""

    @property
    def made_up(self) -> bool:
        """Whether the answers are fabricated, as in a plan: then nothing can be learned from them."""

    def note(self, name: str, value: Any) -> None:
        """Record a fact in the run record, under what was learned."""

    def say(self, text: str) -> None:
        """Print a line for the user."""


@dataclass(frozen=True)
class Scorer(ABC):
    """One number per example; higher is more valuable to keep.

    A scorer is only its settings: it never calls a model, opens a file or makes a batch. It says what it wants to know
    (`asks`), and turns the answers into a number or a problem (`score`). Each example is scored from its own answers
    only.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    reads: ClassVar[str]
    default_drop: ClassVar[str | None] = None
    whole_response: ClassVar[bool] = False  # if too long, cut the prompt, unless `--truncation` says otherwise
    also: ClassVar[tuple[str, ...]] = ()
    """Names that `more` returns: columns of the score table, prefixed with the scorer's name: `cpqs_probability`."""
    labels: ClassVar[tuple[str, ...]] = ()
    """Names of texts that `more` returns: columns of words, prefixed like those in `also`."""
    partial: ClassVar[bool] = False
    """Whether `score` can work with some of the answers; asks that have a problem are then left out."""

    def prepare(self, bench: Workbench) -> Self:
        """Return a copy that has learned from the whole data set, or itself if there is nothing to learn.

        What is learned goes into fields that are not settings:
        `field(default=None, metadata=LEARNED, repr=False, compare=False)`.
        """
        return self

    @abstractmethod
    def asks(self, example: Example) -> dict[str, Ask]:
        """Return what to read for an example, under names that the scorer chooses."""

    @abstractmethod
    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        """Return the score, or why there is none; never NaN."""

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float | str]:
        """Return further values from the same answers, under names in `also` (numbers) and `labels` (texts).

        Undefined ones are left out.
        """
        return {}


def nll(answers: Mapping[str, Answer | Problem], name: str) -> Nll:
    answer = answers[name]
    assert isinstance(answer, Nll), f"`{name}` is {type(answer).__name__}"
    return answer


def count(answers: Mapping[str, Answer], name: str) -> Count:
    answer = answers[name]
    assert isinstance(answer, Count), f"`{name}` is {type(answer).__name__}"
    return answer


def settings_of(thing: Any) -> list[Field[Any]]:
    """Return the fields of a scorer or selector, or of its class, that users set; learned fields are left out."""
    return [one for one in fields(thing) if one.init and not one.metadata.get("learned")]


def learns(scorer: Scorer) -> bool:
    """Tell whether a scorer must be prepared before `asks`."""
    return type(scorer).prepare is not Scorer.prepare


def content_of(id_: str) -> str:
    """Return the part of an id that all examples with the same content share, whatever data set they come from."""
    return id_.removeprefix(POOL).partition("-")[0]


def same_tokens(one: Nll, other: Nll) -> tuple[Nll, Nll]:
    """Drop the first token from both passes over a response if only one of them could score it."""
    if one.tokens > other.tokens:
        return one.without_first(), other
    if other.tokens > one.tokens:
        return one, other.without_first()
    return one, other


def finite(value: float, what: str) -> float | Problem:
    """Return the value as a score, or a problem if it is infinite or undefined."""
    return value if math.isfinite(value) else Problem(f"{what} is not finite")
