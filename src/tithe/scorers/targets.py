"""Compare records with a target set, and let its members take records in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError
from tithe.records import Ask, Example, Vector
from tithe.scorers.base import Workbench, content_of, given

DECIMALS = 6  # of a cosine: further digits are rounding errors and must not decide
BLOCK = 256  # entries of a queue checked at once
Cosines: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """The target set, and the scores by round-robin.

    Args:
        vectors: (targets, dim) float32, each of length 1.
        rows: the targets' rows in their data set.
        places: example id -> score by round-robin.
    """

    vectors: npt.NDArray[np.float32]
    rows: Sequence[int]
    places: Mapping[str, float]

    def cosines(self, vector: npt.NDArray[np.float32]) -> Cosines:
        """Return the cosines of one record, (targets,), or of several, (records, targets)."""
        return np.asarray(np.round(vector @ self.vectors.T, DECIMALS), dtype=np.float32)


def directions(bench: Workbench, examples: Sequence[Example]) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Return which examples have a vector, and the vectors: (found, dim)."""
    read = [answers["given"] for answers in bench.answers([{"given": Ask(given(e), "weighted")} for e in examples])]
    vectors = {i: one.values for i, one in enumerate(read) if isinstance(one, Vector)}
    return list(vectors), np.array(list(vectors.values()), dtype=np.float32)


def round_robin(cosines: Cosines) -> list[int]:
    """Return the records in the order in which the targets, in turn, take their best record left.

    Args:
        cosines: (records, targets).
    """
    queues = np.empty(cosines.shape[::-1], dtype=np.int32)  # (targets, records): each target's ranking of all records
    for j, queue in enumerate(queues):
        queue[:] = np.argsort(-cosines[:, j], kind="stable")  # ties in input order
    taken, order = np.zeros(len(cosines), dtype=bool), list[int]()
    at = [0] * len(queues)  # how far each queue is used up; all records before that are taken
    while len(order) < len(cosines):
        for j, queue in enumerate(queues[: len(cosines) - len(order)]):
            at[j] = first_left(queue, taken, at[j])
            order.append(int(queue[at[j]]))
            taken[order[-1]] = True
    return order


def first_left(queue: npt.NDArray[np.int32], taken: npt.NDArray[np.bool_], at: int) -> int:
    """Return the first place from `at` on whose record is not taken; there must be one."""
    while True:
        left = ~taken[queue[at : at + BLOCK]]
        if left.any():
            return at + int(left.argmax())
        at += BLOCK


def note_targets(bench: Workbench, name: str, targets: Sequence[Example], asked: int) -> None:
    """Note how many targets can be compared, and how many records are themselves targets."""
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


def keep_targets(bench: Workbench, targets: Sequence[Example], ids: Sequence[str], cosines: Cosines) -> None:
    """Keep the table `targets`: one row per target, with the record nearest to it."""
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
