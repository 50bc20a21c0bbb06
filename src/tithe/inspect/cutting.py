"""Count what a maximal length cuts: in tokens of a model, rendered as for training, or in characters."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tithe.data.render import Renderer
from tithe.inspect.contents import characters, quantiles
from tithe.inspect.settings import CheckSettings
from tithe.planner import without_details
from tithe.records import Example, Problem
from tithe.run.run_model import open_model, open_renderer


class LengthCheck(Protocol):
    """What counts the examples that are too long."""

    truncated: int

    def add(self, examples: Sequence[Example]) -> None:
        """Count some examples."""

    def how(self) -> dict[str, Any]:
        """Say how they are measured."""

    def record(self) -> dict[str, Any]:
        """Return the counts."""

    def lengths(self) -> list[dict[str, Any]]:
        """Return the quantiles of lengths that only this check knows."""


def open_length_check(settings: CheckSettings) -> LengthCheck | None:
    """Return what counts truncated examples; None if no length is given.

    Raises:
        TitheError: the model or its template cannot be used.
    """
    if settings.model is not None:
        model = open_model(settings, weights=False)
        return TokenLengths(open_renderer(settings, model), model.name)
    return None if settings.max_length is None else CharacterLengths(settings.max_length)


@dataclass
class TokenLengths:
    """Examples that a model's trainer would cut.

    Args:
        renderer: turns examples into tokens.
        model: name of the model.
    """

    renderer: Renderer
    model: str
    truncated: int = 0
    left_out: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    responses: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, examples: Sequence[Example]) -> None:
        for encoded in self.renderer.encode(examples):
            if isinstance(encoded, Problem):
                self.problems[without_details(encoded.reason)] += 1
                continue
            self.prompts.append(len(encoded.lead) + len(encoded.prompt))
            self.responses.append(len(encoded.response))
            made = self.renderer.build("given", encoded)
            if isinstance(made, Problem):  # nothing of it fits
                self.left_out += 1
                self.truncated += 1
                continue
            self.cut["prompts"] += made.cut_prompt > 0
            self.cut["responses"] += made.cut_response > 0
            self.cut["tokens"] += made.cut_prompt + made.cut_response
            self.truncated += made.cut_prompt > 0 or made.cut_response > 0

    def how(self) -> dict[str, Any]:
        about = self.renderer.describe()
        return {
            "unit": "tokens",
            "max_length": about["max_length"],
            "model": self.model,
            "template": about["template"],
        }

    def record(self) -> dict[str, Any]:
        return self.how() | {
            "examples": self.truncated,
            "responses_cut": self.cut["responses"],
            "prompts_cut": self.cut["prompts"],
            "left_out": self.left_out,
            "tokens_cut": self.cut["tokens"],
            "problems": dict(self.problems.most_common()),
        }

    def lengths(self) -> list[dict[str, Any]]:
        return [quantiles("prompt", "tokens", self.prompts), quantiles("response", "tokens", self.responses)]


@dataclass
class CharacterLengths:
    """Examples with more characters than a length.

    Args:
        max_length: most characters of prompt and response.
    """

    max_length: int
    truncated: int = 0

    def add(self, examples: Sequence[Example]) -> None:
        for one in examples:
            self.truncated += sum(map(characters, (*one.prompt, one.response))) > self.max_length

    def how(self) -> dict[str, Any]:
        return {"unit": "characters", "max_length": self.max_length}

    def record(self) -> dict[str, Any]:
        return self.how() | {"examples": self.truncated}

    def lengths(self) -> list[dict[str, Any]]:
        return []
