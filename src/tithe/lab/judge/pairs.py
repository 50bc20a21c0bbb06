"""Two files of answers, brought together by what was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tithe.data.ids import prompt_id
from tithe.data.record_counts import RecordCounts
from tithe.errors import DataError
from tithe.records import BadRow, Example

SHOWN = 60  # characters of a prompt in a message


@dataclass(frozen=True)
class Answers:
    """Examples by item.

    Args:
        name: the file, for messages.
        examples: item -> example, in the file's order. A prompt that stands there again is an item of its own, with
            `-1`, `-2`, ... behind its id: WizardLM's prompt set has one twice, and the papers count it twice.
        bad: records that could not be read.
        read: counts of what was read.
    """

    name: str
    examples: Mapping[str, Example]
    bad: Sequence[BadRow] = ()
    read: RecordCounts = field(default_factory=RecordCounts)

    @classmethod
    def of(cls, name: str, items: Iterable[Example | BadRow]) -> Answers:
        """Read a file through.

        Raises:
            DataError: no record can be read; names the first and its reason.
        """
        found, bad, seen = dict[str, Example](), list[BadRow](), Counter[str]()
        read = RecordCounts(deed="read", learning=False)
        for item in read.counting(items):
            if isinstance(item, BadRow):
                bad.append(item)
                continue
            key = prompt_id(item.prompt, item.tools)
            found[f"{key}-{seen[key]}" if seen[key] else key] = item
            seen[key] += 1
        if not found:
            why = f": {len(bad):,} bad rows, the first at {bad[0].where}: {bad[0].reason}" if bad else ""
            raise DataError(f"no record of `{name}` can be read{why}")
        return cls(name, found, bad, read)

    @property
    def counts(self) -> dict[str, Any]:
        """How many records there are, and what is noted of them."""
        read = self.read.as_dict()
        return {"records": read["records"], "notes": read["notes"]}

    def __len__(self) -> int:
        return len(self.examples)

    def without(self, other: Answers) -> Iterator[Example]:
        """Those whose prompt the other file has not."""
        return (example for item, example in self.examples.items() if item not in other.examples)

    def first_words(self) -> str:
        text = " ".join(next(iter(self.examples.values())).prompt[-1].content.split())
        return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def both(a: Answers, b: Answers) -> list[str]:
    """The items that both files answer, in A's order.

    Raises:
        DataError: there is none; shows the first prompt of either.
    """
    shared = [item for item in a.examples if item in b.examples]
    if not shared:
        raise DataError(
            f"none of the {len(a):,} prompts of `{a.name}` is among the {len(b):,} of `{b.name}`",
            hint=f"they begin with `{a.first_words()}` and `{b.first_words()}`: prompts are matched by their words",
        )
    return shared
