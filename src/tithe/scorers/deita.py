"""Complexity times quality, as rated by two trained scorer models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Options, Problem
from tithe.scorers.base import LEARNED, Scorer, Workbench
from tithe.scorers.rated import MASS, exchanges, mass, rating, shares

Part = Literal["both", "complexity", "quality"]
REPLIES = ("1", "2", "3", "4", "5", "6")
# Copied exactly, odd spaces included, from the model cards of `hkust-nlp/deita-complexity-scorer` and
# `deita-quality-scorer`, Apache-2.0: the two models were trained on these prompts only.
QUESTIONS = {
    "complexity": "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
    "##Query: {query}  \n##Complexity: ",
    "quality": "You are a helpful assistant. Please identify the quality score of the Response corresponding to the "
    "Question. \n #Question#:\n{query}\n#Response#:\n{answer} \n##Quality: ",
}


@dataclass(frozen=True)
class DeitaScore(Scorer):
    """High: the scorer model finds the user's words demanding and the responses good.

    Paper:    Liu et al. 2023, What Makes Good Data for Alignment?, arXiv 2312.15685 (DEITA)
    Formula:  sum over the dialogue's turns of c * q, c and q = sum_k k * softmax(logits of "1" to "6")_k, the next
              token after the questions for complexity and for quality
    Reads:    two rated passes a turn, likelihood of the six replies
    Range:    1 to 36 a turn; one factor alone 1 to 6
    Differs:  the authors' code takes the digits' ids from a list for each architecture, and rates 3 if it cannot rate;
              here ids come from the tokenizer, and what cannot be rated has no score. The paper then walks down the
              ranking and skips what is too similar to something kept: that is the selector `deita`.

    Args:
        part: `both`, or only one factor, `complexity` or `quality`; its ratings by turn are then kept in the run
            folder, as `complexity.parquet` or `quality.parquet`.
        complexity: such a table, with ratings by another model; this run's model then rates only quality.
        quality: a table of quality ratings; this run's model then rates only complexity.
    """

    name: ClassVar[str] = "deita"
    unit: ClassVar[str] = "product of ratings, summed over turns"
    reads: ClassVar[str] = "rated: options"
    also: ClassVar[tuple[str, ...]] = ("complexity", "quality", MASS)

    part: Part = "both"
    complexity: str | None = None
    quality: str | None = None
    found: Mapping[str, Sequence[float]] | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise SettingsError(f"`part` is `both`, `complexity` or `quality`, not `{self.part}`")
        if [self.part != "both", self.complexity is not None, self.quality is not None].count(True) > 1:
            raise SettingsError(
                "`deita` takes one of `part`, `complexity` and `quality`", hint="a table replaces one factor"
            )

    @property
    def earlier(self) -> Literal["complexity", "quality"] | None:
        """Return the factor that comes from a table."""
        return "complexity" if self.complexity is not None else "quality" if self.quality is not None else None

    @property
    def read(self) -> list[str]:
        """Return the factors that this run's model rates."""
        return [what for what in QUESTIONS if self.part in ("both", what) and what != self.earlier]

    def prepare(self, bench: Workbench) -> Self:
        if self.part != "both":
            bench.keep(self.part, self.by_turn(bench))
        if self.earlier is None:
            return self
        found = from_table(bench, self.complexity or self.quality or "", self.earlier)
        return replace(self, found=found)

    def asks(self, example: Example) -> dict[str, Ask]:
        return {
            f"{what}{turn}": rating(example, QUESTIONS[what].format(query=query, answer=answer), REPLIES)
            for turn, (query, answer) in enumerate(exchanges(example))
            for what in self.read
        }

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        factors = self.factors(example, answers)
        if isinstance(factors, Problem):
            return factors
        return float(np.prod(np.array(list(factors.values())), axis=0).sum())  # sum over turns of c * q

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float]:
        """Return each factor's mean over the turns, and the probability that the model answers with a digit at all."""
        factors = self.factors(example, answers)
        means = {} if isinstance(factors, Problem) else {what: float(np.mean(by)) for what, by in factors.items()}
        return means | {MASS: mass(answers)}

    def factors(self, example: Example, answers: Mapping[str, Answer]) -> dict[str, list[float]] | Problem:
        """Return c, q, or both, by turn."""
        turns = range(len(exchanges(example)))
        factors = {what: [expected(answers, f"{what}{turn}") for turn in turns] for what in self.read}
        if self.earlier is None:
            return factors
        assert self.found is not None, "prepare comes first"
        earlier = self.found.get(example.id, ())
        if len(earlier) != len(turns):
            return Problem(f"no {self.earlier} in the earlier table: {len(earlier)} turns of {len(turns)}")
        return factors | {self.earlier: list(earlier)}

    def by_turn(self, bench: Workbench) -> dict[str, Any]:
        """Make the table that a run with the other model reads: one row per example and turn."""
        examples = bench.examples
        read = bench.answers([self.asks(example) for example in examples])
        rows = [
            (example.id, turn, expected({"": answer}, ""))
            for example, answers in zip(examples, read, strict=True)
            for turn, answer in enumerate(answers.values())
            if isinstance(answer, Options)
        ]
        names = {"id": [id_ for id_, _, _ in rows], "turn": np.array([turn for _, turn, _ in rows], dtype=np.int32)}
        return {**names, self.part: np.array([value for _, _, value in rows], dtype=np.float64)}


def expected(answers: Mapping[str, Answer], name: str) -> float:
    """Return sum_k k * softmax(logits)_k, k from 1."""
    return float(shares(answers, name) @ np.arange(1, len(REPLIES) + 1))


def from_table(bench: Workbench, path: str, what: str) -> dict[str, list[float]]:
    """Read a table of ratings: example id -> the ratings of its turns, in order.

    Raises:
        DataError: it is not such a table, or is about other records.
    """
    columns = bench.table(path)
    missing = next((name for name in ("id", "turn", what) if name not in columns), None)
    if missing is not None:
        raise DataError(
            f"`{path}` has no column `{missing}`, only {', '.join(f'`{name}`' for name in columns)}",
            hint=f"`--scorer deita(part={what})` writes `{what}.parquet` to its run folder",
        )
    found: dict[str, list[float]] = {}
    for id_, _, value in sorted(
        zip(columns["id"], columns["turn"], columns[what], strict=True), key=lambda row: row[1]
    ):
        found.setdefault(id_, []).append(value)
    there = sum(example.id in found for example in bench.examples)
    if not there:
        raise DataError(f"`{path}` is about other records: it has none of the {len(bench.examples):,} here")
    if there < len(bench.examples):
        bench.say(f"note: `{path}` has no {what} of {len(bench.examples) - there:,} of {len(bench.examples):,} records")
    return found
