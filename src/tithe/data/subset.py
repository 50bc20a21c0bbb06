"""Some examples of a data set, as if they were all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Self

from tithe.data.containers import Row
from tithe.data.files import Dataset
from tithe.records import BadRow, Example


@dataclass(frozen=True, repr=False)
class Subset(Dataset):
    """Chosen examples of another data set, under the ids, rows and turns that they have there.

    As a data set is, it is read anew each time and not held in memory. Bad rows are no part of it.

    Args:
        whole: where they come from.
        places: row -> the turns of that record that belong to the subset.
    """

    whole: Dataset = field(kw_only=True)
    places: Mapping[int, Collection[int]] = field(kw_only=True)

    @classmethod
    def of(cls, whole: Dataset, places: Mapping[int, Collection[int]]) -> Self:
        """The examples of `whole` that stand at these places."""
        return cls(**{f.name: getattr(whole, f.name) for f in fields(Dataset)}, whole=whole, places=places)

    def __iter__(self) -> Iterator[Example | BadRow]:
        """The chosen examples in order; the whole is read for it, because an id counts what was before."""
        for item in self.whole:
            if isinstance(item, Example) and item.turn in self.places.get(item.row, ()):
                yield item

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(row, record as it stands) for every record of which an example was chosen."""
        return ((number, row) for number, row in self.whole.rows() if number in self.places)

    def __repr__(self) -> str:
        return f"Subset({self.whole!r}, {sum(map(len, self.places.values())):,} examples)"
