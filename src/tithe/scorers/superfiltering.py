"""IFD as a ratio of perplexities, from a small model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import NOTHING_SCORED, Scorer, alone, finite, given, nll

LARGEST_EXPONENT = 700.0  # exp() of more overflows


@dataclass(frozen=True)
class Superfiltering(Scorer):
    """High: the prompt lowers the response's perplexity little, so there is something to learn.

    Paper:    Li et al. 2024, Superfiltering, arXiv 2402.00530
    Formula:  exp(L_given - L_alone), the ratio of the response's perplexities with and without its prompt
    Reads:    given and alone, response NLL; prompt + 2 x response tokens forward
    Range:    above 0, ratio of perplexities; 1 and more is dropped. The ranking differs from IFD's, a ratio of losses
    Differs:  if the tokenizer has no BOS, the authors score the first response token only with the prompt; here both
              passes then leave it out. Any model may be used; theirs was GPT-2. `--preset superfiltering` gives the
              authors' numbers.

    Args:
        same_tokens: score the same response tokens in both passes; false scores as the authors do.
    """

    name: ClassVar[str] = "superfiltering"
    unit: ClassVar[str] = "ratio of perplexities"
    reads: ClassVar[str] = "given, alone: nll"
    default_drop: ClassVar[str | None] = "superfiltering >= 1"

    same_tokens: bool = True

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "nll"), "alone": Ask(alone(example), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        with_prompt, without = nll(answers, "given"), nll(answers, "alone")
        # Without BOS, nothing comes before the first token in `alone`, so only `given` can score it.
        if self.same_tokens and without.tokens < with_prompt.tokens:
            with_prompt = with_prompt.without_first()
        if with_prompt.tokens == 0 or without.tokens == 0:
            return NOTHING_SCORED
        difference = with_prompt.mean - without.mean
        if difference > LARGEST_EXPONENT:
            return Problem("superfiltering is not finite")
        return finite(math.exp(difference), "superfiltering")  # exp(L_given - L_alone)
