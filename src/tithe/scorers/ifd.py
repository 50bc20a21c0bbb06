"""Instruction-following difficulty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import NOTHING_SCORED, Scorer, alone, finite, given, nll


@dataclass(frozen=True)
class IFD(Scorer):
    """High: the prompt helps the model little with this response, so there is something to learn.

    Paper:    Li et al. 2024, From Quantity to Quality, arXiv 2308.12032
    Formula:  IFD = s(A|Q) / s(A), both mean negative log-likelihoods of the response A, with the prompt Q and without
    Reads:    given and alone, response NLL; prompt + 2 x response tokens forward
    Range:    above 0, ratio; above 1 the prompt hurts, which the paper takes for a mismatch and drops
    Differs:  the authors tokenise prompt and response as one string, and the response again under its header, so the
              two passes may disagree about its first token. Here both passes score the same response ids; if nothing
              comes before the response in `alone` (a tokenizer without BOS), its first token counts in neither.
              `--preset cherry` gives the authors' numbers.

    Args:
        same_tokens: score the same response tokens in both passes; false takes each pass's own mean, as the authors do.
    """

    name: ClassVar[str] = "ifd"
    unit: ClassVar[str] = "ratio"
    reads: ClassVar[str] = "given, alone: nll"
    default_drop: ClassVar[str | None] = "ifd > 1"

    same_tokens: bool = True

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "nll"), "alone": Ask(alone(example), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        conditioned, direct = nll(answers, "given"), nll(answers, "alone")
        # Without BOS, nothing comes before the first token in `alone`, so only `given` can score it.
        if self.same_tokens and direct.tokens < conditioned.tokens:
            conditioned = conditioned.without_first()
        if conditioned.tokens == 0 or direct.tokens == 0:
            return NOTHING_SCORED
        if direct.mean == 0.0:  # s(A) is the denominator
            return Problem("the response has no uncertainty without its prompt")
        return finite(conditioned.mean / direct.mean, "ifd")  # s(A|Q) / s(A)
