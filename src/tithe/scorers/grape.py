"""How likely the response is to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import NOTHING_SCORED, Scorer, finite, given, nll


@dataclass(frozen=True)
class Grape(Scorer):
    """High: the model itself would be likely to answer like this.

    It chooses among several responses to one prompt, not among prompts: use it with the selector `per-prompt`. Across
    different prompts, its top is what the model can already say.

    Paper:    Zhang et al. 2025, The Best Instruction-Tuning Data are Those That Fit, arXiv 2502.04194
    Formula:  1/A * sum_a log p(y_a | x, y_<a), A the number of response tokens
    Reads:    given, response NLL; prompt + response tokens forward
    Range:    0 and below, nats per token
    """

    name: ClassVar[str] = "grape"
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "given: nll"

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        answer = nll(answers, "given")
        if answer.tokens == 0:
            return NOTHING_SCORED
        return finite(-answer.mean, "grape")  # the mean log-likelihood
