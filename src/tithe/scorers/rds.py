"""Likeness to a target set, by hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Problem, Vector
from tithe.scorers.base import LEARNED, Scorer, Workbench, content_of, given
from tithe.scorers.shots import distinct

By = Literal["round-robin", "max", "mean"]
CHUNK = 4096  # records whose vectors are held at a time
DECIMALS = 6  # of a cosine: what is beyond is rounding, and decides nothing
BLOCK = 256  # places of a queue that are looked at together
Cosines = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """What records are held against.

    Args:
        vectors: (targets, dim) float32, each of length 1.
        rows: their records in the target's data set.
        places: example id -> score by round-robin.
    """

    vectors: npt.NDArray[np.float32]
    rows: Sequence[int]
    places: Mapping[str, float]

    def cosines(self, vector: npt.NDArray[np.float32]) -> Cosines:
        """(targets,) of one record, or (records, targets)."""
        return np.asarray(np.round(vector @ self.vectors.T, DECIMALS), dtype=np.float32)


@dataclass(frozen=True)
class RDS(Scorer):
    """High: to the model this record is like an example of the target set.

    Paper:    Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning, arXiv 2503.01807 (RDS+)
    Formula:  h = sum_t w_t H_last[t], w_t = t / sum(t), over the T tokens of prompt and response, t from 1; cos(h, h')
              to each h' of the target set; then the targets in turn take their best record that is not yet taken
    Reads:    given of all records and of the target's, weighted mean of the last hidden states
    Range:    above 0 to 1: 1 - place / records, 1 is taken first, and above 0.95 are the first 5 %; `max` and `mean`
              are cosines, -1 to 1
    Differs:  equal cosines, to six decimals, are taken in input order, and a target that stands there twice has one
              turn. A record that is a target itself is scored as any other, with cosine 1; how many there are is said.

    Args:
        target: a data set whose records show what the selection is to be like.
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
            raise SettingsError("`rds` needs a target set to hold records against", hint="`--target few.jsonl`")
        targets = distinct(bench.load(self.target, "target"))
        there, vectors = directions(bench, targets)
        tell(bench, self.target, [targets[i] for i in there], len(targets))
        against = Targets(vectors, [targets[i].row for i in there], {})
        rows, cosines = self.held_against(bench, against)
        ids = [bench.examples[i].id for i in rows]
        write_down(bench, [targets[i] for i in there], ids, cosines)
        order = round_robin(cosines) if self.by == "round-robin" else []
        places = {ids[row]: 1 - place / len(order) for place, row in enumerate(order)}
        changes: dict[str, Any] = {"found": replace(against, places=places)}
        return replace(self, **changes)

    def held_against(self, bench: Workbench, targets: Targets) -> tuple[list[int], Cosines]:
        """Which records have a vector, and their cosines: (found, targets). Vectors are held a chunk at a time."""
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
        """The greatest cosine, and the row of the target that it belongs to."""
        assert self.found is not None, "prepare comes first"
        cosines = self.cosines(answers)
        return {"cosine": float(cosines.max()), "target": float(self.found.rows[int(cosines.argmax())])}

    def cosines(self, answers: Mapping[str, Answer]) -> Cosines:
        assert self.found is not None, "prepare comes first"
        vector = answers["given"]
        assert isinstance(vector, Vector), f"`given` is {type(vector).__name__}"
        return self.found.cosines(vector.values)


def directions(bench: Workbench, examples: Sequence[Example]) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Which of the examples have a vector, and these: (found, dim)."""
    read = [answers["given"] for answers in bench.answers([{"given": Ask(given(e), "weighted")} for e in examples])]
    vectors = {i: one.values for i, one in enumerate(read) if isinstance(one, Vector)}
    return list(vectors), np.array(list(vectors.values()), dtype=np.float32)


def round_robin(cosines: Cosines) -> list[int]:
    """Records in the order in which the targets, in turn, take their best one left: (records, targets)."""
    queues = np.empty(cosines.shape[::-1], dtype=np.int32)
    for j, queue in enumerate(queues):
        queue[:] = np.argsort(-cosines[:, j], kind="stable")  # of equals the first of the input
    taken, order = np.zeros(len(cosines), dtype=bool), list[int]()
    at = [0] * len(queues)
    while len(order) < len(cosines):
        for j, queue in enumerate(queues[: len(cosines) - len(order)]):
            at[j] = first_left(queue, taken, at[j])
            order.append(int(queue[at[j]]))
            taken[order[-1]] = True
    return order


def first_left(queue: npt.NDArray[np.int32], taken: npt.NDArray[np.bool_], at: int) -> int:
    """The first place from here on whose record is not taken; there is one."""
    while True:
        left = ~taken[queue[at : at + BLOCK]]
        if left.any():
            return at + int(left.argmax())
        at += BLOCK


def tell(bench: Workbench, name: str, targets: Sequence[Example], asked: int) -> None:
    """Count what there is to hold records against, and records that are among it."""
    bench.note("targets", len(targets))
    if not targets:
        raise DataError(f"none of the {asked:,} records of the target `{name}` has hidden states to compare")
    if len(targets) < asked:
        bench.say(f"note: {asked - len(targets):,} of {asked:,} targets have no hidden states to compare")
    contents = {content_of(one.id) for one in targets}
    same = sum(content_of(one.id) in contents for one in bench.examples)
    bench.note("records_in_target_set", same)
    if same:
        bench.say(f"note: in the target set themselves, with cosine 1: {same:,} of {len(bench.examples):,} records")


def write_down(bench: Workbench, targets: Sequence[Example], ids: Sequence[str], cosines: Cosines) -> None:
    """`targets`: one row per target, with the record nearest to it."""
    best = cosines.argmax(axis=0) if len(cosines) else []
    bench.keep(
        "targets",
        {
            "target": [targets[j].id for j in range(len(best))],
            "row": np.array([targets[j].row for j in range(len(best))], dtype=np.int64),
            "nearest": [ids[int(i)] for i in best],
            "cosine": np.array([cosines[i, j] for j, i in enumerate(best)], dtype=np.float32),
        },
    )
