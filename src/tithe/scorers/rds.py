"""Similarity to a target set, by hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self, get_args

import numpy as np

from tithe.errors import SettingsError
from tithe.records import Answer, Ask, Example, Problem, Vector
from tithe.scorers.base import LEARNED, Scorer, Workbench, given
from tithe.scorers.shots import distinct
from tithe.scorers.targets import Cosines, Targets, directions, keep_targets, note_targets, round_robin

By = Literal["round-robin", "max", "mean"]
CHUNK = 4096  # records whose vectors are held at a time


@dataclass(frozen=True)
class RDS(Scorer):
    """High: in the model's hidden states, this record is similar to an example of the target set.

    Paper:    Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning, arXiv 2503.01807 (RDS+)
    Formula:  h = sum_t w_t H_last[t], w_t = t / sum(t), over the T tokens of prompt and response, t from 1; cos(h, h')
              to each h' of the target set; then each target in turn takes its best record that is not yet taken
    Reads:    given of all records and of the target's, weighted mean of the last hidden states
    Range:    above 0 to 1: 1 - place / records, so the record taken first has 1 and the first 5 % are above 0.95; `max`
              and `mean` are cosines, -1 to 1
    Differs:  cosines that agree to six decimals are taken in input order, and a target that occurs twice has one turn.
              A record that is itself a target is scored like any other, with cosine 1; a note says how many there are.

    Args:
        target: a data set whose records show what the selection should be like.
        by: `round-robin`, as in the paper; or the `max` or `mean` cosine to the targets.
    """

    name: ClassVar[str] = "rds"
    unit: ClassVar[str] = "share of records taken later, or cosine"
    reads: ClassVar[str] = "given: weighted"
    also: ClassVar[tuple[str, ...]] = ("cosine", "target")

    target: str | None = None
    by: By = "round-robin"
    found: Targets | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise SettingsError(f"`by` is `round-robin`, `max` or `mean`, not `{self.by}`")

    def prepare(self, bench: Workbench) -> Self:
        if self.target is None:
            raise SettingsError("`rds` needs a target set to compare records with", hint="`--target few.jsonl`")
        targets = distinct(bench.load(self.target, "target"))
        there, vectors = directions(bench, targets)
        note_targets(bench, self.target, [targets[i] for i in there], len(targets))
        against = Targets(vectors, [targets[i].row for i in there], {})
        rows, cosines = self.compare(bench, against)
        ids = [bench.examples[i].id for i in rows]
        keep_targets(bench, [targets[i] for i in there], ids, cosines)
        order = round_robin(cosines) if self.by == "round-robin" else []
        places = {ids[row]: 1 - place / len(order) for place, row in enumerate(order)}
        return replace(self, found=replace(against, places=places))

    def compare(self, bench: Workbench, targets: Targets) -> tuple[list[int], Cosines]:
        """Return which records have a vector, and their cosines, (found, targets), a chunk of vectors at a time."""
        rows, parts = list[int](), [np.zeros((0, len(targets.rows)), dtype=np.float32)]
        for start in range(0, len(bench.examples), CHUNK):
            there, vectors = directions(bench, bench.examples[start : start + CHUNK])
            if there:
                rows += [start + i for i in there]
                parts.append(targets.cosines(vectors))
        return rows, np.concatenate(parts)

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "weighted")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        assert self.found is not None, "prepare comes first"
        if self.by == "round-robin":
            return self.found.places.get(example.id) or Problem("no turn: it had no vector when they were dealt out")
        cosines = self.cosines(answers)
        return float(cosines.max() if self.by == "max" else cosines.mean(dtype=np.float64))

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float]:
        """Return the greatest cosine, and the row of its target."""
        assert self.found is not None, "prepare comes first"
        cosines = self.cosines(answers)
        return {"cosine": float(cosines.max()), "target": float(self.found.rows[int(cosines.argmax())])}

    def cosines(self, answers: Mapping[str, Answer]) -> Cosines:
        assert self.found is not None, "prepare comes first"
        vector = answers["given"]
        assert isinstance(vector, Vector), f"`given` is {type(vector).__name__}"
        return self.found.cosines(vector.values)
