"""A judge is asked about every pair, in both orders, until its reply holds two numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.data.counts import RecordCounts
from tithe.data.ids import prompt_id
from tithe.data.prompts import PLACEHOLDER
from tithe.errors import DataError
from tithe.lab.judge.judge_prompt import question, scores_of
from tithe.lab.judge.tally import Review, Scored
from tithe.lab.writing.answering import Writer
from tithe.records import BadRow, Example, Message, Problem
from tithe.report.reporter import Reporter

ORDERS = ("given", "swapped")  # A shown first, B shown first
NOBODY = Scored(0.0, 0.0)  # of two equal texts: neither is better


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    item: str
    a: Example
    b: Example

    @property
    def same(self) -> bool:
        return self.a.response.content.strip() == self.b.response.content.strip()

    def question(self, order: str, attempt: int) -> str:
        first, second = (self.a, self.b) if order == "given" else (self.b, self.a)
        return question(self.a.prompt, first.response.content, second.response.content, attempt)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one review.

    Args:
        scores: of both sides, or why there are none.
        reply: the judge's words, the last ones where it was asked again; None where none came.
        attempts: replies that were read.
    """

    scores: Scored | Problem
    reply: str | None
    attempts: int


@dataclass
class Court:
    """Asks a judge about pairs.

    Args:
        judge: a model that writes.
        attempts: how often it is asked about the same order of the same pair.
        place: run folder that keeps replies.
        reporter: who listens.
        reused: replies that were there already.
        work: what the judge did.
    """

    judge: Writer
    attempts: int
    place: Path
    reporter: Reporter
    reused: int = field(default=0, init=False)
    replies: int = field(default=0, init=False)
    work: dict[str, int] = field(default_factory=dict, init=False)

    def as_dict(self) -> dict[str, Any]:
        """For the run record."""
        return self.judge.describe() | {"replies": self.replies, "reused": self.reused} | self.work

    def hear(self, pairs: Sequence[Pair]) -> dict[str, dict[str, Heard]]:
        """Item -> order -> what the judge said.

        At temperature 0 the same request has the same reply, so a second attempt reminds the judge of the form.
        """
        found: dict[str, dict[str, Heard]] = {pair.item: {} for pair in pairs}
        todo = [(pair, order) for pair in pairs for order in ORDERS]
        for attempt in range(self.attempts):
            if not todo:
                break
            if attempt:
                self.reporter.say(f"{len(todo):,} replies hold no verdict: asked again, attempt {attempt + 1}")
            said = self.ask(todo, attempt)
            left = []
            for pair, order in todo:
                heard = read(said[name_of(pair, order, attempt)], order, attempt)
                if isinstance(heard.scores, Problem) and heard.reply is None and attempt:
                    continue  # what failed on the way leaves the reply that came before
                found[pair.item][order] = heard
                if isinstance(heard.scores, Problem) and heard.reply is not None:
                    left.append((pair, order))
            todo = left
        return found

    def ask(self, todo: Sequence[tuple[Pair, str]], attempt: int) -> Mapping[str, Mapping[str, Any] | Problem]:
        """One reply, or why there is none, for each."""
        asked = {}
        for pair, order in todo:
            message = Message("user", pair.question(order, attempt))
            name = name_of(pair, order, attempt)
            asked[name] = Example(
                name, pair.a.row, 1, (message,), Message("assistant", PLACEHOLDER), where=pair.a.where
            )
        self.reporter.phase("judging")
        self.reporter.expect(len(asked))
        try:
            said = self.judge.answers(asked, self.place, self.reporter)
        finally:
            self.reporter.done()
        self.reused += self.judge.reused
        self.replies += sum(not isinstance(one, Problem) for one in said.values())
        for name, n in self.judge.work.items():
            self.work[name] = self.work.get(name, 0) + int(n)
        return said


def name_of(pair: Pair, order: str, attempt: int) -> str:
    return f"{pair.item}/{order}/{attempt}"


def read(said: Mapping[str, Any] | Problem, order: str, attempt: int) -> Heard:
    """The scores of one reply, each on its own side."""
    if isinstance(said, Problem):
        return Heard(said, None, attempt)
    found = scores_of(said["text"])
    if isinstance(found, Problem):
        return Heard(found, said["text"], attempt + 1)
    first, second = found
    scored = Scored(first, second) if order == "given" else Scored(second, first)
    return Heard(scored, said["text"], attempt + 1)


def reviews_of(pairs: Sequence[Pair], heard: Mapping[str, Mapping[str, Heard]]) -> list[Review]:
    """In the pairs' order; of equal answers neither wins, and no judge is asked."""
    found = []
    for pair in pairs:
        given, swapped = (NOBODY if pair.same else heard[pair.item][order].scores for order in ORDERS)
        found.append(Review(pair.item, given, swapped, pair.same))
    return found


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
