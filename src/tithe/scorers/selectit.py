"""Ratings by the model itself, weighted by how sure it is of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tithe.errors import SettingsError
from tithe.records import Answer, Ask, Example, FloatArray
from tithe.scorers.base import Scorer
from tithe.scorers.rated import MASS, mass, prompt_text, rating, shares

REPLIES = ("1", "2", "3", "4", "5")
# Five ways to ask one question, in our own words.
OPENINGS = (
    "Rate how good the response below is as an answer to its instruction, from 1 (useless) to 5 (excellent).",
    "You check training data for an assistant. Give the pair below a grade: 5 if a careful expert would have answered "
    "like this, 1 if nothing in the answer can be used.",
    "How well does this response do what the instruction asks for? 1 means not at all, 5 means completely.",
    "Look at whether the response below is correct, complete and clear. Reply with one digit from 1 (worst) to 5 "
    "(best).",
    "Would an assistant become better by learning from this example? Answer on a scale from 1 (it would become worse) "
    "to 5 (much better).",
)
QUESTION = "{opening}\n\nInstruction:\n{prompt}\n\nResponse:\n{response}\n\nReply with the digit alone. The rating is:"


@dataclass(frozen=True)
class SelectIT(Scorer):
    """High: asked in several ways, the model rates this response high, is sure, and is consistent.

    Paper:    Liu et al. 2024, SelectIT: Uncertainty-Aware Self-Reflection, arXiv 2402.16705
    Formula:  S = mean_q(S_q) / (1 + alpha * std_q(S_q)) over K = 5 rating prompts q,
              S_q = S_base * 1/(K - 1) * sum_k |P'_k - P'_base|, P'_k = p(k) / sum_j p(j) for the replies "1" to "5" as
              the next token, S_base the likeliest of them
    Reads:    five rated passes, likelihood of the five replies
    Range:    0 to 5: the rating itself if all five prompts put all probability on it, 0 if it is spread evenly
    Differs:  the rating prompts are our own. The paper then averages over models of several sizes, weighted by their
              number of parameters: that is a mean of the columns of several runs.

    Args:
        alpha: the penalty for disagreement between the prompts, 0 or more; the paper takes 0.2.
    """

    name: ClassVar[str] = "selectit"
    unit: ClassVar[str] = "rating"
    reads: ClassVar[str] = "rated: options"
    also: ClassVar[tuple[str, ...]] = ("rating", "spread", MASS)

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise SettingsError(f"`alpha` must be at least 0, not {self.alpha}", hint="the paper takes 0.2")

    def asks(self, example: Example) -> dict[str, Ask]:
        prompt, response = prompt_text(example), example.response.content
        return {
            f"rating{i}": rating(example, QUESTION.format(opening=one, prompt=prompt, response=response), REPLIES)
            for i, one in enumerate(OPENINGS)
        }

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float:
        sure = np.array([certain_rating(shares(answers, name)) for name in answers])  # S_q
        return float(sure.mean() / (1 + self.alpha * sure.std()))  # mean_q(S_q) / (1 + alpha * std_q(S_q))

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float]:
        """Return the mean of the likeliest ratings, how far prompts disagree, and how likely any reply is."""
        each = [shares(answers, name) for name in answers]
        likeliest = float(np.mean([1 + int(one.argmax()) for one in each]))
        return {"rating": likeliest, "spread": float(np.std([certain_rating(p) for p in each])), MASS: mass(answers)}


def certain_rating(p: FloatArray) -> float:
    """Return S_q: the likeliest rating, times the mean lead of its probability over the others."""
    base = int(p.argmax())  # S_base - 1; argmax takes the lower rating of a tie
    return float((1 + base) * np.abs(p - p[base]).sum() / (len(p) - 1))
