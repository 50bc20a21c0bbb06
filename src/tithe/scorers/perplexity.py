"""Perplexity of the response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import NOTHING_SCORED, Scorer, finite, given, nll


@dataclass(frozen=True)
class Perplexity(Scorer):
    """High: the model finds this response unlikely after its prompt.

    Paper:    a baseline of most selection papers, e.g. Li et al. 2024, arXiv 2308.12032
    Formula:  exp(L_given), L_given the response's mean negative log-likelihood after its prompt
    Reads:    given, response NLL; prompt + response tokens forward
    Range:    1 and above, perplexity
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "perplexity"
    reads: ClassVar[str] = "given: nll"

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        answer = nll(answers, "given")
        if answer.tokens == 0:
            return NOTHING_SCORED
        # exp() of more than about 709 raises OverflowError.
        return finite(math.exp(answer.mean), "perplexity") if answer.mean < 700 else Problem("perplexity is not finite")
