"""Examples as a trainer reads them: the ids of the `given` pass, and labels on exactly what scoring reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from tithe.data.counts import RecordCounts, RemarkCounts
from tithe.data.render import EncodedExample, Renderer
from tithe.planner import without_numbers
from tithe.records import BadRow, Example, Pass, Problem

WINDOW = 1024  # examples tokenised in one call
UNREAD = -100  # label of a token that no loss is taken of
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One example in ids.

    Args:
        id: of the example.
        ids: all that the model reads.
        first: place of the first token that a loss is taken of.
        cut_prompt: tokens left out of the prompt.
        cut_response: tokens left out of the response.
        parts: lengths of the examples, where several stand in one row.
        marked: labels of such a row.
    """

    id: str
    ids: list[int]
    first: int
    cut_prompt: int = 0
    cut_response: int = 0
    parts: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()

    @property
    def labels(self) -> list[int]:
        """The labels: -100 before the response, then its ids."""
        return list(self.marked) if self.parts else [UNREAD] * self.first + self.ids[self.first :]


@dataclass(frozen=True)
class Ending:
    """What makes up for a template that writes nothing after a response.

    Args:
        plain: the renderer without the end of a turn: a response that is as long there has none.
        eos: what is trained in its place; None where the tokenizer has no EOS.
        max_length: of a row.
    """

    plain: Renderer
    eos: int | None
    max_length: int

    def lacks(self, encoded: Sequence[EncodedExample | Problem], examples: Sequence[Example]) -> list[bool]:
        """Return whether each response is without an end."""
        plain = self.plain.encode(examples)
        return [
            isinstance(one, EncodedExample)
            and isinstance(other, EncodedExample)
            and len(one.response) == len(other.response)
            and not (len(one.response) and one.response[-1] == self.eos)
            for one, other in zip(encoded, plain, strict=True)
        ]

    def complete(self, row: TrainRow) -> TrainRow:
        """Return the row with EOS behind its response, where there is one and room for it."""
        if self.eos is None or row.cut_response or len(row.ids) >= self.max_length:
            return row
        return replace(row, ids=[*row.ids, self.eos])


@dataclass
class TrainRows:
    """The rows of a data set, and what became of the other examples."""

    rows: list[TrainRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    truncated_prompts: int = 0
    truncated_responses: int = 0
    response_tokens_cut: int = 0
    remarks: RemarkCounts = field(default_factory=RemarkCounts)
    records: RecordCounts = field(default_factory=lambda: RecordCounts(deed="trained on"))
    ends_added: int = 0
    ends_missing: int = 0

    def add(self, example: Example, got: Pass | Problem, ending: Ending | None = None) -> None:
        """Take an example.

        Args:
            example: it.
            got: its pass, or why there is none.
            ending: for a response after which the template writes nothing.
        """
        first = max(got.start, 1) if isinstance(got, Pass) else 0  # a first token has nothing it is predicted from
        if isinstance(got, Pass) and first < len(got.ids):
            row = TrainRow(example.id, got.ids.tolist(), first, got.cut_prompt, got.cut_response)
            if ending is not None:
                ended = ending.complete(row)
                self.ends_added += ended is not row
                self.ends_missing += ended is row and not row.cut_response
                row = ended
            self.take(row)
        else:
            reason = got.reason if isinstance(got, Problem) else "nothing stands before its only token"
            self.leave(without_numbers(reason))

    def take(self, row: TrainRow) -> None:
        self.examples += 1
        self.rows.append(row)
        self.truncated_prompts += bool(row.cut_prompt)
        self.truncated_responses += bool(row.cut_response)
        self.response_tokens_cut += row.cut_response

    def leave(self, reason: str) -> None:
        self.examples += 1
        self.left_out[reason] += 1

    def only(self, names: Collection[str]) -> TrainRows:
        """Return the rows of these examples; what was cut is counted anew, what was odd stays that of all examples."""
        found = TrainRows(remarks=self.remarks, records=self.records)
        for row in self.rows:
            if row.id in names:
                found.take(row)
        return found

    def counts(self) -> dict[str, Any]:
        """Return the counts for the record; they add up: examples are trained on or left out, for a reason."""
        return {
            "examples": self.examples,
            "trained_on": len(self.rows),
            "left_out": dict(self.left_out),
            "tokens": sum(len(row.ids) for row in self.rows),
            "response_tokens": sum(len(row.ids) - row.first for row in self.rows),
            "truncated_prompts": self.truncated_prompts,
            "truncated_responses": self.truncated_responses,
            "response_tokens_cut": self.response_tokens_cut,
            **self.remarks.as_dict(),
            "records": self.records.records,
            "notes": self.records.as_dict()["notes"],
            "ends_added": self.ends_added,
            "ends_missing": self.ends_missing,
        }


def read_rows(items: Iterable[Example | BadRow], renderer: Renderer, ending: Ending | None = None) -> TrainRows:
    """Render examples as scoring does.

    Args:
        items: of a data set; bad rows are left out with their reasons.
        renderer: it decides what the response is and where it is cut.
        ending: what is trained where the template writes nothing after a response; None where no end is wanted.
    """
    found = TrainRows()
    for window in chunks(found.records.counting(items), WINDOW):
        good = [item for item in window if isinstance(item, Example)]
        for item in window:
            if isinstance(item, BadRow):
                found.leave(item.reason)
        encoded = renderer.encode(good)
        lacking = ending.lacks(encoded, good) if ending is not None else [False] * len(good)
        for example, one, lacks in zip(good, encoded, lacking, strict=True):
            if isinstance(one, EncodedExample):
                found.remarks.add(one.remarks)
            got = one if isinstance(one, Problem) else renderer.build("given", one)
            found.add(example, got, ending if lacks else None)
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk
