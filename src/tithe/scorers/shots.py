"""Find worked examples for each record: other records with the nearest prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.records import Example, Problem
from tithe.scorers.base import Workbench, content_of

if TYPE_CHECKING:
    from tithe.neighbours import Neighbours

SAME = 0.9999  # texts with this cosine or more count as equal; rounding makes it a little less than 1
NO_VECTOR = Problem("no neighbour: the encoder makes nothing of its prompt")


@dataclass(frozen=True)
class Shots:
    """The worked examples of each record.

    Args:
        by_id: example id -> its worked examples, the nearest last, or why it has none.
    """

    by_id: Mapping[str, tuple[Example, ...] | Problem]

    def of(self, example: Example) -> tuple[Example, ...] | Problem:
        return self.by_id[example.id]


def check_shots(shots: int, exclude_similarity: float | None) -> None:
    """Refuse impossible settings.

    Raises:
        SettingsError: no shots, or a cosine that no pair can have.
    """
    if shots < 1:
        raise SettingsError(f"`shots` must be at least 1, not {shots}", hint="the paper shows 1 worked example")
    if exclude_similarity is not None and not -1 < exclude_similarity <= 1:
        raise SettingsError(
            f"`exclude_similarity` is a cosine above -1 and at most 1, not {exclude_similarity}",
            hint="0.999 leaves out duplicates alone",
        )


def find_shots(
    bench: Workbench, encoder: str, *, shots: int, exclude_above: float | None = None, pool: str | None = None
) -> Shots:
    """Find the worked examples of every record, and keep them as the table `neighbours`.

    Args:
        bench: where the examples are.
        encoder: what embeds prompts.
        shots: how many for each record.
        exclude_above: skip examples of this similarity or more.
        pool: another data set to take them from. A record is never its own worked example; it is recognised by its
            position in its own data set, and by its content in another one.

    Raises:
        DataError: there are not enough records to choose from.
    """
    from tithe.neighbours import nearest  # imported here as it is slow to load, and listing scorers must be quick

    examples = bench.examples
    others = examples if pool is None else distinct(bench.load(pool))
    demand_enough(len(others) - (pool is None), shots, pool)
    own = bench.embed(examples, encoder)
    theirs = None if pool is None else bench.embed(others, encoder)
    spare = 0 if pool is None else 1  # one more, as its own content may be among the nearest and is skipped
    found = nearest(own, min(shots + spare, len(others)), pool=theirs, exclude_above=exclude_above)
    note_search(bench, found)
    index, similarity = found.index, found.similarity
    if pool is not None:
        index, similarity = without_itself(examples, others, index, similarity, shots)
    where = "in the shot pool" if exclude_above is None else f"below the similarity of {exclude_above:g}"
    too_few = Problem(f"no neighbour: fewer than {shots} {where}")
    chosen: dict[str, tuple[Example, ...] | Problem] = {}
    for i, example in enumerate(examples):
        places = [int(j) for j in index[i] if j >= 0]
        chosen[example.id] = tuple(others[j] for j in reversed(places))  # the nearest last, next to the prompt
        if not own[i].any():
            chosen[example.id] = NO_VECTOR
        elif len(places) < shots:
            chosen[example.id] = too_few
    keep_neighbours(bench, [e.id for e in examples], [e.id for e in others], index, similarity)
    note_duplicates(bench, similarity[:, 0], index[:, 0] >= 0, len(examples))
    return Shots(chosen)


def note_search(bench: Workbench, found: Neighbours) -> None:
    """Note the recall of an approximate search; an exact search needs no note."""
    if found.ann is not None:
        bench.note("search", asdict(found.ann))
        bench.say(f"note: neighbours are approximate: {found.ann}")


def distinct(examples: Sequence[Example]) -> Sequence[Example]:
    """Return the first example of each content."""
    return list({content_of(example.id): example for example in reversed(examples)}.values())[::-1]


def demand_enough(others: int, shots: int, pool: str | None) -> None:
    if others >= shots:
        return
    where = "besides a record itself" if pool is None else f"in the shot pool `{pool}`"
    raise DataError(
        f"{shots} worked example{'s are' if shots > 1 else ' is'} to be shown, and {where} there "
        f"{'is only 1' if others == 1 else f'are {others}' if others else 'is none'}",
        hint="`--shot-pool` takes them from another data set" if pool is None else "fewer `--shots`, or a larger pool",
    )


def without_itself(
    examples: Sequence[Example],
    others: Sequence[Example],
    index: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float32],
    shots: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the first `shots` neighbours whose content is not the example's own: (examples, shots)."""
    contents = [content_of(other.id) for other in others]
    places = np.full((len(examples), shots), -1, dtype=np.int64)
    cosines = np.full((len(examples), shots), np.nan, dtype=np.float32)
    for i, example in enumerate(examples):
        own = content_of(example.id)
        left = [k for k, j in enumerate(index[i].tolist()) if j >= 0 and contents[j] != own][:shots]
        places[i, : len(left)], cosines[i, : len(left)] = index[i, left], similarity[i, left]
    return places, cosines


def keep_neighbours(
    bench: Workbench,
    ids: Sequence[str],
    others: Sequence[str],
    index: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float32],
) -> None:
    """Keep the table `neighbours`: one row per example and neighbour, the nearest first."""
    rows, ranks = np.nonzero(index >= 0)
    bench.keep(
        "neighbours",
        {
            "id": [ids[i] for i in rows.tolist()],
            "neighbour": [others[j] for j in index[rows, ranks].tolist()],
            "similarity": similarity[rows, ranks].astype(np.float32),
            "rank": (ranks + 1).astype(np.int32),
        },
    )


def note_duplicates(
    bench: Workbench, similarity: npt.NDArray[np.float32], there: npt.NDArray[np.bool_], total: int
) -> None:
    """Note how many neighbours are duplicates, as these give the answer away."""
    same = int((similarity[there] >= SAME).sum())
    bench.note("same_prompt_neighbours", same)
    bench.note("without_neighbour", int((~there).sum()))
    if same:
        whose = "every record" if same == total else f"{same:,} of {total:,} records"
        bench.say(
            f"note: the nearest neighbour of {whose} has the same prompt, and may give the answer away; "
            "`--exclude-similarity 0.999` skips such neighbours"
        )
