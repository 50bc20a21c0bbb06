"""How often a record helps as a one-shot example, over a set of anchor tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np

from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Nll, Problem
from tithe.scorers.base import (
    LEARNED,
    NOTHING_SCORED,
    Scorer,
    Workbench,
    content_of,
    given,
    nll,
    same_tokens,
    shown,
)


@dataclass(frozen=True)
class Anchor:
    """A task on which records are tried.

    Args:
        example: the task and its response.
        zero: the likelihood of the response without a worked example.
    """

    example: Example
    zero: Nll


@dataclass(frozen=True)
class Nuggets(Scorer):
    """High: as a worked example, this record makes the right response more likely in many different tasks.

    Paper:    Li et al. 2024, One-Shot Learning as Instruction Data Prospector, arXiv 2312.10302
    Formula:  1/m * #{j : log p(y_j | z shown, x_j) > log p(y_j | x_j)} over m anchor tasks (x_j, y_j), z the record
    Reads:    given of the anchors; then, for every record, one shown pass per anchor (100): by far the most expensive
              scorer, for data sets that another one has made small (`--pipeline`)
    Range:    0 to 1, share of the anchors
    Differs:  anchors are the records nearest to the centres of a k-means over prompts, as in the paper, but with any
              encoder. A record is not tried on itself, nor on an anchor so long that the record does not fit before it:
              the share is of the other anchors.

    Args:
        anchors: how many tasks; all records if there are fewer.
        encoder: what embeds prompts.
        seed: of k-means.
    """

    name: ClassVar[str] = "nuggets"
    unit: ClassVar[str] = "share of anchors"
    reads: ClassVar[str] = "given, shown: nll"
    whole_response: ClassVar[bool] = True
    partial: ClassVar[bool] = True

    anchors: int = 100
    encoder: str = "self"
    seed: int = 0
    found: Sequence[Anchor] | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.anchors < 1:
            raise SettingsError(f"`anchors` must be at least 1, not {self.anchors}", hint="the papers take 100")

    def prepare(self, bench: Workbench) -> Self:
        examples = bench.examples
        if len(examples) < 2:
            raise DataError("`nuggets` tries a record on others, and there is only one record")
        if len(examples) <= self.anchors:
            rows = list(range(len(examples)))
            bench.say(f"note: {len(examples):,} records are no more than {self.anchors} anchors: each is one")
        else:
            from tithe.neighbours import (
                kmeans,  # imported here as it is slow to load, and listing scorers must be quick
            )

            vectors = bench.embed(examples, self.encoder)
            clusters = kmeans(vectors, self.anchors, seed=self.seed)
            rows = sorted(np.asarray(clusters.nearest).tolist())  # all different; read in input order
        read = bench.answers([{"zero": Ask(given(examples[i]), "nll")} for i in rows])
        zeros = [(examples[i], answers["zero"]) for i, answers in zip(rows, read, strict=True)]
        found = [Anchor(example, zero) for example, zero in zeros if isinstance(zero, Nll) and zero.tokens]
        bench.note("anchors", len(found))
        bench.keep("anchors", {"id": [anchor.example.id for anchor in found]})
        if len(found) < 2:
            raise DataError(
                f"of {len(rows)} anchor tasks only {len(found)} can be scored",
                hint="`--max-length` decides what fits; `nuggets(anchors=...)` takes more",
            )
        return replace(self, found=found)

    def asks(self, example: Example) -> dict[str, Ask]:
        return {f"anchor{j}": Ask(shown(a.example, [example]), "nll") for j, a in self.others(example)}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        helped = []
        for j, anchor in self.others(example):
            if f"anchor{j}" in answers:
                one, zero = same_tokens(nll(answers, f"anchor{j}"), anchor.zero)
                if one.tokens and zero.tokens:
                    helped.append(one.total < zero.total)  # log p(y_j | z shown, x_j) > log p(y_j | x_j)
        if not helped:
            return NOTHING_SCORED if answers else Problem("no anchor is another record")
        return sum(helped) / len(helped)

    def others(self, example: Example) -> list[tuple[int, Anchor]]:
        """Return the anchors that are other records; a copy of this one does not count."""
        assert self.found is not None, "prepare comes first"
        own = content_of(example.id)  # by content, as a copy has another id
        return [(j, anchor) for j, anchor in enumerate(self.found) if content_of(anchor.example.id) != own]
