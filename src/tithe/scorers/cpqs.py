"""Contrastive perception quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tithe.records import Answer, Ask, Example, Margin, Problem
from tithe.scorers.base import Scorer, finite, given


@dataclass(frozen=True)
class CPQS(Scorer):
    """High: the model's hidden states look like those of a strong model's responses, as judged by a trained head.

    Paper:    CPQS-Tuning: A Model Self-Perception-Based Data Filtering Algorithm for Efficient Instruction Fine-Tuning,
              ICLR 2026
    Formula:  z_high - z_low, the head's logits for the response's hidden states; the paper's score is
              softmax(z)_high = 1 / (1 + exp(-margin)), stored beside it
    Reads:    given, hidden states of the response's tokens; prompt + response tokens forward
    Range:    any number, in logits; 0 is undecided
    Differs:  the margin is the score, since in float32 the probability is exactly 1 from a margin of about 17 on, and
              the top of a ranking would be random. The response ends with its own last token; the authors' ends with
              what the template writes after it (`--preset cpqs-paper`).

    Args:
        head: the folder of a head that `tithe head train` or `tithe head import` made for this model.
    """

    name: ClassVar[str] = "cpqs"
    unit: ClassVar[str] = "logit margin"
    reads: ClassVar[str] = "given: hidden states"
    also: ClassVar[tuple[str, ...]] = ("probability",)

    head: str = ""

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), f"head:{self.head}")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return finite(margin(answers).value, "cpqs")  # z_high - z_low

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float]:
        return {"probability": margin(answers).probability}


def margin(answers: Mapping[str, Answer]) -> Margin:
    answer = answers["given"]
    assert isinstance(answer, Margin), f"`given` is {type(answer).__name__}"
    return answer
