"""Examples as a trainer reads them: the ids of the `given` pass, and labels on exactly what scoring reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from tithe.data.remarks import RemarkCounts
from tithe.data.render import Renderer
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
        """The ids of the response; -100 before it."""
        return list(self.marked) if self.parts else [UNREAD] * self.first + self.ids[self.first :]


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

    def add(self, example: Example, got: Pass | Problem) -> None:
        first = max(got.start, 1) if isinstance(got, Pass) else 0  # a first token has nothing it is predicted from
        if isinstance(got, Pass) and first < len(got.ids):
            self.take(TrainRow(example.id, got.ids.tolist(), first, got.cut_prompt, got.cut_response))
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
        """The rows of these examples; what was cut is counted anew, and nothing is left out of them."""
        found = TrainRows()
        for row in self.rows:
            if row.id in names:
                found.take(row)
        return found

    def counts(self) -> dict[str, Any]:
        """For the record; they add up: examples are trained on or left out, for a reason."""
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
        }


def read_rows(items: Iterable[Example | BadRow], renderer: Renderer) -> TrainRows:
    """Render examples as scoring does.

    Args:
        items: of a data set; bad rows are left out with their reasons.
        renderer: it decides what the response is and where it is cut.
    """
    found = TrainRows()
    for window in chunks(items, WINDOW):
        good = [item for item in window if isinstance(item, Example)]
        for item in window:
            if isinstance(item, BadRow):
                found.leave(item.reason)
        for example, encoded in zip(good, renderer.encode(good), strict=True):
            if isinstance(encoded, Problem):
                found.add(example, encoded)
                continue
            found.remarks.add(encoded.remarks)
            found.add(example, renderer.build("given", encoded))
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk
