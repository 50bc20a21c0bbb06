"""Count what a pass over a data set leaves out or changes, and report it in sentences; used by all commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tithe.data.ids import is_repeated
from tithe.data.rendered import Remarks
from tithe.records import BadRow, Example, ResponseNote

Item = TypeVar("Item", bound=Example | BadRow)


@dataclass
class RecordCounts:
    """Counts of the records, bad rows, notes and duplicates of a data set.

    Args:
        deed: the word that replaces `scored` in the notes.
        learning: whether to count notes that matter only if responses are learnt or scored.
        records: records seen, bad rows included.
        examples: records (or turns) that became examples.
        bad: reason -> number of rows.
        notes: note about something that is not read, or perhaps not as intended -> number of records.
        duplicates: examples with the same prompt and response as an earlier one.
    """

    deed: str = "scored"
    learning: bool = True
    records: int = 0
    examples: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    _noted: int = -1  # the row whose notes were counted last; all turns of a row carry the same notes
    _last_row: int = -1

    def add_item(self, item: Example | BadRow) -> None:
        """Count an item; the turns of a record must be consecutive."""
        self.records += item.row != self._last_row
        self._last_row = item.row
        if isinstance(item, BadRow):
            self.bad[item.reason] += 1
            return
        self.examples += 1
        self.duplicates += is_repeated(item.id)
        # Notes count records: with several turns of a record, only the first one counts.
        if item.notes and item.row != self._noted:
            self._noted = item.row
            self.notes.update(note for note in item.notes if self.learning or not isinstance(note, ResponseNote))

    def counting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items and count each of them."""
        for item in items:
            self.add_item(item)
            yield item

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as stored in `run.json`."""
        return {
            "records": self.records,
            "examples": self.examples,
            "bad_rows": dict(self.bad),
            "notes": {note.replace("is scored", f"is {self.deed}"): n for note, n in self.notes.most_common()},
            "duplicates": self.duplicates,
        }


def note_sentences(counts: Mapping[str, Any], source: str | None = None) -> Iterator[str]:
    """Yield a sentence for each note; counts of earlier versions have none.

    Args:
        counts: `RecordCounts.as_dict()`, perhaps with further keys.
        source: the data set as the sentence should name it, if a command reads several.
    """
    where = "" if source is None else f" of {source}"
    for text, n in counts.get("notes", {}).items():
        yield f"note: {n:,} of {counts['records']:,} records{where}: {text}"


@dataclass
class RemarkCounts:
    """Counts of examples that were rendered or tokenised in an unusual way.

    Args:
        parts: kind of part -> examples that have it; common kinds are counted only if the template left them out.
        left_out: kind of part -> examples in which the template left some of it out.
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
    """Yield a sentence for each remark that was counted; counts of earlier versions have none."""
    for kind, found in counts.get("left_out_by_template", {}).items():
        yield f"left out by the template: {kind}, in {found['examples']:,} of {found['of']:,} examples that have one"
    if counts.get("tokenised_apart"):
        yield (
            f"prompt and response tokenised apart, {counts['tokenised_apart']:,} examples: "
            "one token of the whole text reaches over both"
        )
    if counts.get("own_end_markers"):
        yield f"responses that end with an end marker of their own: {counts['own_end_markers']:,}"
