"""Groups of duplicates: how many there are, and where the largest of them lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tithe.data.ids import is_repeated, strip_occurrence
from tithe.duplicates.near import NearDuplicates, Twin
from tithe.errors import brief
from tithe.records import Example

GROUPS, MEMBERS = 20, 20  # shown: groups, and examples of each
TEXT = 160  # characters shown of an example


@dataclass(frozen=True)
class QuotedExample:
    """An example as a report shows it."""

    where: str
    text: str

    @classmethod
    def of(cls, example: Example) -> QuotedExample:
        asked = example.prompt[-1].content if example.prompt else ""
        return cls(example.where, f"{brief(asked, TEXT // 2)} -> {brief(example.response.content, TEXT // 2)}")

    def as_dict(self) -> dict[str, Any]:
        return {"at": self.where, "text": self.text}


@dataclass
class DuplicateGroups:
    """Exact and near-duplicates of a data set.

    Args:
        near: index of near-duplicates; None if they are not looked for.
    """

    near: NearDuplicates | None
    again: Counter[str] = field(default_factory=Counter)  # content -> examples that repeat an earlier one
    ids: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    twins: Mapping[str, Twin] = field(default_factory=dict)
    _places: dict[str, list[QuotedExample]] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Take an example in the first reading."""
        if is_repeated(example.id):
            self.again[strip_occurrence(example.id)] += 1
        elif self.near is not None:
            self.near.sign(example)
            self.ids.append(example.id)
            self.rows.append(example.row)

    def read_again(self, examples: Iterable[Example], more: Iterable[Example]) -> None:
        """Read the data set twice more if there is something to find: to compare texts, and to quote the groups.

        Args:
            examples: all examples.
            more: all examples, for the last reading.
        """
        if self.near is not None and (wanted := self.near.may_have_twins()):
            self.near.add_all(examples, wanted)
            self.twins = self.near.find(self.ids, self.rows)
        groups = [id_ for id_, _ in self.again.most_common(GROUPS)]
        for kept, dropped in self.near_groups()[:GROUPS]:
            groups += [kept, *dropped[:MEMBERS]]
        self._places = {id_: [] for id_ in groups}
        if groups:
            for one in more:
                content = strip_occurrence(one.id)
                found = self._places.get(content)
                if found is not None and len(found) < MEMBERS:
                    found.append(QuotedExample.of(one))

    def near_groups(self) -> list[tuple[str, list[str]]]:
        """Return each kept example with its near-duplicates, the largest group first."""
        found: dict[str, list[str]] = {}
        for id_, twin in self.twins.items():
            found.setdefault(twin.id, []).append(id_)
        return sorted(found.items(), key=lambda group: -len(group[1]))

    def exact_record(self) -> dict[str, Any]:
        """Return the counts of exact duplicates, and the largest groups."""
        largest = [
            {"examples": n + 1, **self._places[id_][0].as_dict(), "also_at": wheres(self._places[id_][1:])}
            for id_, n in self.again.most_common(GROUPS)
        ]
        return {"examples": self.again.total(), "groups": len(self.again), "largest": largest}

    def near_record(self) -> dict[str, Any]:
        """Return the counts of near-duplicates, and the largest groups."""
        assert self.near is not None
        largest = []
        for kept, dropped in self.near_groups()[:GROUPS]:
            like = [
                {**self._places[id_][0].as_dict(), "similarity": round(self.twins[id_].similarity, 4)}
                for id_ in dropped[:MEMBERS]
            ]
            largest.append({"examples": len(dropped) + 1, **self._places[kept][0].as_dict(), "like": like})
        return {"examples": len(self.twins), "groups": len(self.near_groups()), **self.near.record, "largest": largest}


def wheres(places: Sequence[QuotedExample]) -> list[str]:
    return [place.where for place in places]
