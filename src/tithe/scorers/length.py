"""Length of the response: a baseline for every other score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import Scorer, count, given


@dataclass(frozen=True)
class Length(Scorer):
    """High: a long response.

    Paper:    Zhao et al. 2024, Long Is More for Alignment, arXiv 2402.04833
    Formula:  number of response tokens
    Reads:    given, token counts; no forward pass, a tokenizer is enough
    Range:    1 and above, tokens
    """

    name: ClassVar[str] = "length"
    unit: ClassVar[str] = "tokens"
    reads: ClassVar[str] = "given: count"

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "count")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        tokens = count(answers, "given").response
        return float(tokens) if tokens else Problem("empty response")
