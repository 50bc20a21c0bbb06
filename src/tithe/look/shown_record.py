"""One record as the model reads it: tokens with their losses, passes, and each scorer's number with its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

# What a token is to the model: `lead` is BOS or what else begins a sequence; `shot` is a worked example; `tail` is what
# the template writes after the response, which no pass contains. Without a model, a message's name stands here.
Part: TypeAlias = Literal["lead", "shot", "prompt", "response", "tail"] | str
Value: TypeAlias = float | int | Sequence[float]


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a pass, or a piece of text where no tokenizer is given.

    Args:
        text: its text; empty if a later token completes the character.
        part: what it is to the model.
        id: its id; None for a piece of text.
        cut: whether it is left out to fit the maximal length.
        special: whether it is one of the tokenizer's special tokens.
        given: its loss after the prompt, in nats; None if that is not scored.
        alone: its loss without the prompt.
    """

    text: str
    part: Part
    id: int | None = None
    cut: bool = False
    special: bool = False
    given: float | None = None
    alone: float | None = None

    @property
    def difference(self) -> float | None:
        """The loss after the prompt minus the loss without it: below 0, the prompt makes the token easier."""
        return None if self.given is None or self.alone is None else self.given - self.alone


@dataclass(frozen=True)
class ShownPass:
    """A forward pass that the model reads for this record.

    Args:
        kind: `given`, `alone`, `shown` or `rated`.
        asked_by: scorers and their names for it.
        tokens: of the whole pass.
        context: tokens before the response.
        shots: tokens of worked examples among them.
        cut: tokens left out, by what they belong to.
        loss: mean loss of the scored response tokens, in nats; None if it was not read.
        scored: number of these tokens.
        texts: its tokens; only of passes with worked examples or a question.
    """

    kind: str
    asked_by: Sequence[str]
    tokens: int
    context: int
    shots: int
    cut: Mapping[str, int]
    loss: float | None = None
    scored: int | None = None
    texts: Sequence[Token] = field(default=(), repr=False)


@dataclass(frozen=True)
class ShownScore:
    """A scorer's number for this record.

    Args:
        name: of the scorer.
        value: None if there is none.
        problem: why there is none.
        unit: of the value.
        formula: as the scorer's documentation has it.
        arithmetic: the formula with its numbers filled in; None where we do not know how.
        parts: what the model answered: name of the ask -> name of the number -> number.
        more: further values of the scorer.
        dropped: the scorer's own filter if it drops this record, as `tithe select` does by default.
    """

    name: str
    value: float | None
    problem: str | None
    unit: str
    formula: str
    arithmetic: str | None = None
    parts: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    more: Mapping[str, float | str] = field(default_factory=dict)
    dropped: str | None = None


def finite(value: Any) -> Any:
    """Return a value with plain lists and dicts, and None for what is no number in JSON."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
