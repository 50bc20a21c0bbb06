"""Model instruction weakness value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import (
    LEARNED,
    NOTHING_SCORED,
    Scorer,
    Workbench,
    finite,
    given,
    nll,
    same_tokens,
    shown,
)
from tithe.scorers.shots import Shots, check_shots, find_shots


@dataclass(frozen=True)
class MIWV(Scorer):
    """High: a similar worked example before the prompt makes this response harder for the model, not easier.

    Paper:    Jiang et al. 2026, Importance-Aware Data Selection for Efficient LLM Instruction Tuning, arXiv 2511.07074
    Formula:  MIWV = L(y|x, C) - L(y|x), L the mean negative log-likelihood over the same tokens of the response y,
              x its prompt, C the worked example: prompt and response of the other record whose prompt is nearest by
              cosine (eqs. 1-8)
    Reads:    given and shown, response NLL; shot + 2 x (prompt + response) tokens forward
    Range:    any number, nats per token; below 0 the worked example helps
    Differs:  the authors published no code. Where the paper is silent: the shot is put into the same template, as an
              earlier dialogue; the raw prompt is embedded, without template; if too long, the shot is cut first, from
              its beginning. A record whose shot does not fit at all has no score.

    Args:
        shots: how many worked examples, the nearest last; the paper takes 1.
        exclude_similarity: -1 to 1; do not show prompts of this cosine or more: 0.999 leaves out duplicates, which
            would give the answer away.
        shot_pool: a data set to take the worked examples from, instead of the records scored.
        encoder: what embeds prompts: `self`, `tfidf`, a sentence-transformers or a model2vec model.
    """

    name: ClassVar[str] = "miwv"
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "given, shown: nll"
    whole_response: ClassVar[bool] = True

    shots: int = 1
    exclude_similarity: float | None = None
    shot_pool: str | None = None
    encoder: str = "self"
    found: Shots | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_shots(self.shots, self.exclude_similarity)

    def prepare(self, bench: Workbench) -> Self:
        found = find_shots(
            bench, self.encoder, shots=self.shots, exclude_above=self.exclude_similarity, pool=self.shot_pool
        )
        return replace(self, found=found)

    def asks(self, example: Example) -> dict[str, Ask]:
        assert self.found is not None, "prepare comes first"
        shots = self.found.of(example)
        if isinstance(shots, Problem):
            return {"zero": Ask(given(example), "nll")}
        return {"zero": Ask(given(example), "nll"), "one": Ask(shown(example, shots), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        if "one" not in answers:
            assert self.found is not None, "prepare comes first"
            why = self.found.of(example)
            assert isinstance(why, Problem), why
            return why
        one, zero = same_tokens(nll(answers, "one"), nll(answers, "zero"))
        if one.tokens == 0 or zero.tokens == 0:
            return NOTHING_SCORED
        return finite(one.mean - zero.mean, "miwv")  # L(y|x, C) - L(y|x)
