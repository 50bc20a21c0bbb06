"""What all arms choose from: examples that can be trained on, with their lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.data.export import write_records
from tithe.data.files import Dataset, open_dataset
from tithe.data.record_counts import RecordCounts
from tithe.data.remarks import RemarkCounts
from tithe.data.render import Encoded, Renderer
from tithe.errors import DataError
from tithe.planner import windows, without_numbers
from tithe.records import BadRow, Example, Pass, Problem

TOGETHER = 1024  # examples tokenised in one call


@dataclass(frozen=True)
class Pool:
    """The pool, in the order of its file.

    Args:
        path: the file, which holds these examples and no others.
        ids: (examples,).
        rows: (examples,) of the file.
        response_tokens: (examples,) that a training reads, after a cut.
        left_out: reason -> how many records were not taken into the file.
        counts: of the records that it was made of, and of their rendering.
    """

    path: Path
    ids: tuple[str, ...]
    rows: tuple[int, ...]
    response_tokens: npt.NDArray[np.int64]
    left_out: Mapping[str, int]
    counts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dataset(self) -> Dataset:
        return open_dataset(str(self.path))

    def write(self, chosen: Sequence[int], path: Path) -> None:
        """These examples as a file, in the pool's order; replaces one that is there."""
        write_records(self.dataset, frozenset(self.rows[i] for i in chosen), path, overwrite=True)


def make_pool(
    dataset: Dataset, rows: Collection[int], renderer: Renderer, path: Path, unwanted: Mapping[str, str] | None = None
) -> Pool:
    """Write the examples that can be trained on.

    An arm that looks at no likelihood would choose what the others cannot score, and be trained on fewer examples
    than they: so what has no pass is taken from all of them.

    Args:
        dataset: where they come from.
        rows: of it, that the pool may have.
        renderer: as training will have it.
        path: where to.
        unwanted: id -> why an example is left out besides.

    Raises:
        DataError: nothing is left.
    """
    wanted, unwanted = set(rows), unwanted or {}
    read, remarks = RecordCounts(deed="trained on"), RemarkCounts()
    candidates = (item for item in dataset if isinstance(item, BadRow) or item.row in wanted)
    examples = [item for item in read.counting(candidates) if isinstance(item, Example)]
    cuts = Counter(truncated_prompts=0, truncated_responses=0)
    tokens: dict[int, int] = {}
    why: dict[str, int] = {}
    for example, found in zip(examples, passes(examples, renderer, remarks), strict=True):
        reason = unwanted.get(example.id) or (without_numbers(found.reason) if isinstance(found, Problem) else None)
        if reason is not None:
            why[reason] = why.get(reason, 0) + 1
        else:
            assert isinstance(found, Pass)
            tokens[example.row] = found.response_tokens
            cuts.update(truncated_prompts=found.cut_prompt > 0, truncated_responses=found.cut_response > 0)
    if not tokens:
        raise DataError(
            f"no example of `{dataset.source}` can be trained on: {', '.join(f'{r} ({n:,})' for r, n in why.items())}",
            hint="`max_length` and `template` decide what fits",
        )
    write_records(dataset, frozenset(tokens), path, overwrite=True)
    pool = read_pool_file(path, list(tokens.values()), why)
    return replace(pool, counts={**read.as_dict(), **remarks.as_dict(), **cuts})


def read_pool_file(path: Path, tokens: Sequence[int], left_out: Mapping[str, int]) -> Pool:
    """The pool under the ids and rows of its own file."""
    items = [item for item in open_dataset(str(path)) if isinstance(item, Example)]
    assert len(items) == len(tokens), "the pool's file holds what was written to it"
    ids, rows = tuple(item.id for item in items), tuple(item.row for item in items)
    return Pool(path, ids, rows, np.array(tokens, dtype=np.int64), dict(left_out))


def passes(examples: Sequence[Example], renderer: Renderer, remarks: RemarkCounts) -> list[Pass | Problem]:
    """Return the pass that a training reads, of each; what is odd in it is counted."""
    found: list[Pass | Problem] = []
    for chunk in windows(examples, TOGETHER):
        for one in renderer.encode(chunk):
            if isinstance(one, Encoded):
                remarks.add(one.remarks)
            found.append(renderer.build("given", one) if isinstance(one, Encoded) else one)
    return found
