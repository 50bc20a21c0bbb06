"""One record as the model reads it: tokens with their losses, passes, and each scorer's number with its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from tithe.errors import brief

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


@dataclass(frozen=True, repr=False)
class ShownRecord:
    """One record as the model reads it.

    Args:
        id: of the example.
        row: index of the record.
        turn: index of the response among the record's messages.
        turns: all turns of the record that are read.
        where: file and line.
        source: the data set.
        tokens: prompt and response, with what is cut; pieces of text without a tokenizer.
        template: the settings of the rendering; empty without a tokenizer.
        model: name and dtype of the model; None without one.
        problem: why the model cannot read the record; None if it can.
        notes: what is unusual: parts that the template leaves out, text that is not read, and so on.
        passes: the forward passes.
        scores: the scorers' numbers.
    """

    id: str
    row: int
    turn: int
    turns: Sequence[int]
    where: str
    source: str
    tokens: Sequence[Token]
    template: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, str] | None = None
    problem: str | None = None
    notes: Sequence[str] = ()
    passes: Sequence[ShownPass] = ()
    scores: Sequence[ShownScore] = ()

    @property
    def tokenised(self) -> bool:
        """Whether its tokens are a tokenizer's, not pieces of text."""
        return self.model is not None and any(token.id is not None for token in self.tokens)

    @property
    def has_losses(self) -> bool:
        """Whether a model has read it."""
        return any(token.given is not None for token in self.tokens)

    def count(self, part: Part, *, cut: bool | None = None) -> int:
        """Count the tokens of a part."""
        return sum(one.part == part and cut in (None, one.cut) for one in self.tokens)

    def the_pass(self, kind: str) -> ShownPass | None:
        """Return the first pass of a kind, or None."""
        return next((one for one in self.passes if one.kind == kind), None)

    def strongest(self, most: int) -> list[Token]:
        """Return the response tokens whose loss the prompt changes most, from made harder to made easier.

        If a pass is missing, those with the highest loss.
        """
        differ = [one for one in self.tokens if one.difference is not None]
        if differ:
            first = sorted(differ, key=lambda one: -abs(one.difference or 0.0))[:most]
            return sorted(first, key=lambda one: -(one.difference or 0.0))
        return sorted((one for one in self.tokens if one.given is not None), key=lambda one: -(one.given or 0.0))[:most]

    @property
    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON; numbers that are not finite become null."""
        made: dict[str, Any] = finite({name: value for name, value in asdict(self).items() if name != "tokens"})
        made["tokens"] = [finite(asdict(one)) for one in self.tokens]
        for one, own in zip(made["passes"], self.passes, strict=True):
            one["texts"] = "".join(token.text for token in own.texts) or None
        return made

    def __repr__(self) -> str:
        numbers = [f"{one.name} {'none' if one.value is None else f'{one.value:.4g}'}" for one in self.scores]
        size = f"{self.count('prompt'):,} + {self.count('response'):,} tokens" if self.tokenised else "no tokens"
        what = [f"record {self.row}, turn {self.turn} of {brief(self.source, 60)}", size, *numbers[:6]]
        return f"<ShownRecord: {', '.join(what)}>"

    def __str__(self) -> str:
        from tithe.look.record_text import plain_text

        return plain_text(self)


def finite(value: Any) -> Any:
    """Return a value with plain lists and dicts, and None for what is no number in JSON."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
