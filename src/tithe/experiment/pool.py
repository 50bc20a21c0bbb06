"""What all arms choose from: examples that can be trained on, with their lengths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tithe.data.export import write_records
from tithe.data.files import Dataset, open_dataset
from tithe.data.render import Encoded, Renderer
from tithe.errors import DataError
from tithe.planner import windows, without_numbers
from tithe.records import Example, Pass, Problem

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
    """

    path: Path
    ids: tuple[str, ...]
    rows: tuple[int, ...]
    response_tokens: npt.NDArray[np.int64]
    left_out: Mapping[str, int]

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
    examples = [item for item in dataset if isinstance(item, Example) and item.row in wanted]
    tokens: dict[int, int] = {}
    why: dict[str, int] = {}
    for example, found in zip(examples, passes(examples, renderer), strict=True):
        reason = unwanted.get(example.id) or (without_numbers(found.reason) if isinstance(found, Problem) else None)
        if reason is not None:
            why[reason] = why.get(reason, 0) + 1
        else:
            assert isinstance(found, Pass)
            tokens[example.row] = found.response_tokens
    if not tokens:
        raise DataError(
            f"no example of `{dataset.source}` can be trained on: {', '.join(f'{r} ({n:,})' for r, n in why.items())}",
            hint="`max_length` and `template` decide what fits",
        )
    write_records(dataset, frozenset(tokens), path, overwrite=True)
    return read_pool_file(path, list(tokens.values()), why)


def read_pool_file(path: Path, tokens: Sequence[int], left_out: Mapping[str, int]) -> Pool:
    """The pool under the ids and rows of its own file."""
    items = [item for item in open_dataset(str(path)) if isinstance(item, Example)]
    assert len(items) == len(tokens), "the pool's file holds what was written to it"
    ids, rows = tuple(item.id for item in items), tuple(item.row for item in items)
    return Pool(path, ids, rows, np.array(tokens, dtype=np.int64), dict(left_out))


def passes(examples: Sequence[Example], renderer: Renderer) -> list[Pass | Problem]:
    """The pass that a training reads, of each."""
    found: list[Pass | Problem] = []
    for chunk in windows(examples, TOGETHER):
        for one in renderer.encode(chunk):
            found.append(renderer.build("given", one) if isinstance(one, Encoded) else one)
    return found
