"""Count what a pass over a data set leaves out or changes, and say so in sentences; used by all commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tithe.data.ids import is_repeated
from tithe.data.rendered import Remarks
from tithe.records import BadRow, Example, OfLearning

Item = TypeVar("Item", bound=Example | BadRow)


@dataclass
class RecordCounts:
    """What the records of a data set are, and what is to be noted of them.

    Args:
        deed: what is done with an example, where the notes say `scored`.
        learning: whether notes count that matter only where responses are learnt or scored.
        records: records seen, bad rows included.
        examples: records (or turns) that became examples.
        bad: reason -> how many rows.
        notes: what records hold that is not read, or not as it may be meant -> how many records.
        duplicates: examples with the same prompt and response as an earlier one.
    """

    deed: str = "scored"
    learning: bool = True
    records: int = 0
    examples: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    _noted: int = -1  # the row whose notes are counted: its other turns have them, too
    _last_row: int = -1

    def add_item(self, item: Example | BadRow) -> None:
        """Count an item; the turns of a record come one after the other."""
        self.records += item.row != self._last_row
        self._last_row = item.row
        if isinstance(item, BadRow):
            self.bad[item.reason] += 1
            return
        self.examples += 1
        self.duplicates += is_repeated(item.id)
        if item.notes and item.row != self._noted:
            self._noted = item.row
            self.notes.update(note for note in item.notes if self.learning or not isinstance(note, OfLearning))

    def counting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Count items on their way."""
        for item in items:
            self.add_item(item)
            yield item

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as they stand in a record."""
        return {
            "records": self.records,
            "examples": self.examples,
            "bad_rows": dict(self.bad),
            "notes": {note.replace("is scored", f"is {self.deed}"): n for note, n in self.notes.most_common()},
            "duplicates": self.duplicates,
        }


def note_sentences(counts: Mapping[str, Any], source: str | None = None) -> Iterator[str]:
    """Yield a sentence for each note; counts written before there were any have none.

    Args:
        counts: `RecordCounts.as_dict()`, or with that in it.
        source: the data set as a sentence names it, where a command reads several.
    """
    where = "" if source is None else f" of {source}"
    for text, n in counts.get("notes", {}).items():
        yield f"note: {n:,} of {counts['records']:,} records{where}: {text}"


@dataclass
class RemarkCounts:
    """How many examples were rendered in an odd way.

    Args:
        parts: kind of part -> examples that have it; the usual kinds are counted where the template left them out.
        left_out: kind of part -> examples of which the template left some of it out.
        apart: examples whose prompt and response had to be tokenised apart.
        own_end: examples whose response ends with an end marker of its own.
    """

    parts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    apart: int = 0
    own_end: int = 0

    def add(self, remarks: Remarks) -> None:
        self.parts.update(remarks.parts)
        self.left_out.update(remarks.left_out)
        self.apart += remarks.apart
        self.own_end += remarks.own_end

    def as_dict(self) -> dict[str, Any]:
        return {
            "left_out_by_template": {
                kind: {"examples": n, "of": self.parts[kind]} for kind, n in sorted(self.left_out.items())
            },
            "tokenised_apart": self.apart,
            "own_end_markers": self.own_end,
        }


def remark_sentences(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each oddity that was counted; counts written before there were any have none."""
    for kind, found in counts.get("left_out_by_template", {}).items():
        yield f"left out by the template: {kind}, in {found['examples']:,} of {found['of']:,} examples that have one"
    if counts.get("tokenised_apart"):
        yield (
            f"prompt and response tokenised apart, {counts['tokenised_apart']:,} examples: "
            "one token of the whole text reaches over both"
        )
    if counts.get("own_end_markers"):
        yield f"responses that end with an end marker of their own: {counts['own_end_markers']:,}"
