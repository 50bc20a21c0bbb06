"""Count what the examples of a data set are made of: lengths, roles, turns, languages."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tithe.inspect.languages import UNKNOWN, Detector, sample_of
from tithe.inspect.limits import Rate
from tithe.records import Example, Message

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "99 %": 0.99, "max": 1.0}


def quantiles(what: str, unit: str, values: Sequence[int]) -> dict[str, Any]:
    """Return the quantiles of lengths; they are None without values."""
    found = np.quantile(np.asarray(values, dtype=np.float64), [*QUANTILES.values()]) if len(values) else None
    named = {name: None if found is None else round(float(found[i]), 1) for i, name in enumerate(QUANTILES)}
    return {"what": what, "unit": unit, **named}


@dataclass
class Contents:
    """Counts over the examples of a data set.

    Args:
        detector: tells languages apart.
    """

    detector: Detector
    roles: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    prompts: array[int] = field(default_factory=lambda: array("Q"))  # characters
    responses: array[int] = field(default_factory=lambda: array("Q"))
    answered: Counter[int] = field(default_factory=Counter)  # assistant turns of an example -> examples

    def add(self, example: Example) -> None:
        """Count an example."""
        messages = (*example.prompt, example.response)
        self.roles.update(message.role for message in messages)
        self.languages[self.detector.of(sample_of(example))] += 1
        self.prompts.append(sum(map(characters, example.prompt)))
        self.responses.append(characters(example.response))
        self.answered[sum(message.role == "assistant" for message in messages)] += 1
        self.traits["system message"] += any(message.role == "system" for message in messages)
        self.traits["several turns"] += any(message.role == "assistant" for message in example.prompt)
        self.traits["reasoning"] += any(message.reasoning is not None for message in messages)
        self.traits["tool calls"] += any(message.tool_calls for message in messages)
        self.traits["tool schemas"] += bool(example.tools)

    @property
    def main_language(self) -> str | None:
        """The language of most examples; None without one."""
        known = [name for name, _ in self.languages.most_common() if name != UNKNOWN]
        return known[0] if known else None

    @property
    def other_language(self) -> Rate:
        """Examples in a known language that is not the commonest."""
        others = sum(n for name, n in self.languages.items() if name not in (UNKNOWN, self.main_language))
        return Rate(others, self.languages.total())

    def record(self) -> dict[str, Any]:
        return {
            "lengths": [
                quantiles("prompt", "characters", self.prompts),
                quantiles("response", "characters", self.responses),
            ],
            "languages": {
                "by": self.detector.by,
                "kind": self.detector.kind,
                "main": self.main_language,
                "examples": dict(self.languages.most_common()),
            },
            "roles": dict(self.roles.most_common()),
            "assistant_turns": {str(turns): n for turns, n in sorted(self.answered.items())},
            "examples_with": {name: n for name, n in self.traits.items() if n},
        }


def characters(message: Message) -> int:
    """Return the length of a message's text, its reasoning included."""
    return len(message.content) + len(message.reasoning or "")
