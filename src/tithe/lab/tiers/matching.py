"""Prompts that are asked again, and the strong responses that belong to them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tithe.data.ids import prompt_id
from tithe.data.record_counts import RecordCounts
from tithe.errors import DataError
from tithe.lab.tiers.settings import TierSettings
from tithe.lab.tiers.tier_rows import TierRow, of_example, place
from tithe.lab.writing.answering import Answers, Writer
from tithe.planner import without_numbers
from tithe.records import BadRow, Example, Message, Problem

SHOWN = 60  # characters of a prompt in a message


@dataclass(frozen=True)
class PromptPool:
    """The distinct prompts of a data set, each with the first record that has it.

    Args:
        name: the data set, for messages.
        examples: prompt id -> example, in input order.
        repeated: records whose prompt was there before.
        bad: records that could not be read.
        read: counts of what was read.
    """

    name: str
    examples: Mapping[str, Example]
    repeated: Sequence[Example] = ()
    bad: Sequence[BadRow] = ()
    read: RecordCounts = field(default_factory=RecordCounts)

    @classmethod
    def of(cls, name: str, items: Iterable[Example | BadRow]) -> PromptPool:
        """Read a data set through.

        Raises:
            DataError: no record can be read; names the first and its reason.
        """
        found: dict[str, Example] = {}
        repeated, bad, read = list[Example](), list[BadRow](), RecordCounts(deed="taken")
        for item in read.counting(items):
            if isinstance(item, BadRow):
                bad.append(item)
            elif found.setdefault(prompt_id(item.prompt, item.tools), item) is not item:
                repeated.append(item)
        if not found:
            why = f": {len(bad):,} bad rows, the first at {bad[0].where}: {bad[0].reason}" if bad else ""
            raise DataError(f"no record of `{name}` can be read{why}", hint="`--format` names the shape, if need be")
        return cls(name, found, repeated, bad, read)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def counts(self) -> dict[str, object]:
        """How many records became how many prompts."""
        bad = Counter(row.reason for row in self.bad)
        return {
            "records": self.read.records,
            "prompts": len(self),
            "repeated_prompts": len(self.repeated),
            "bad_rows": dict(bad.most_common()),
            "notes": self.read.as_dict()["notes"],
        }

    def left_out(self) -> Iterator[dict[str, str]]:
        """Every record that is no prompt of its own, with its reason."""
        yield from ({"where": row.where, "reason": row.reason} for row in self.bad)
        yield from ({"where": example.where, "reason": "the same prompt again"} for example in self.repeated)


@dataclass(frozen=True)
class MatchedPrompts:
    """Prompts that have a strong response.

    Args:
        strong: prompt id -> the example with the strong response, in the order of the prompts.
        unmatched: prompts without a strong response.
        unused: strong responses to prompts that were not asked for.
    """

    strong: Mapping[str, Example]
    unmatched: int
    unused: int


def match(asked: PromptPool, strong: PromptPool) -> MatchedPrompts:
    """Bring both sides together by what the prompts say.

    Raises:
        DataError: they have no prompt in common; shows the first of either.
    """
    pairs = {key: strong.examples[key] for key in asked.examples if key in strong.examples}
    if not pairs:
        raise DataError(
            f"none of the {len(asked):,} prompts of `{asked.name}` is among the {len(strong):,} of `{strong.name}`",
            hint=f"they begin with `{beginning(asked)}` and `{beginning(strong)}`: prompts are matched by their words",
        )
    return MatchedPrompts(pairs, len(asked) - len(pairs), len(strong) - len(pairs))


def beginning(pool: PromptPool) -> str:
    """The first prompt's first words."""
    text = " ".join(next(iter(pool.examples.values())).prompt[-1].content.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def draw(keys: Iterable[str], n: int | None, seed: int) -> list[str]:
    """`n` prompts by chance, in their own order; a smaller draw is part of a larger one."""
    there = list(keys)
    if n is None or n >= len(there):
        return there
    lots = {key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in there}
    chosen = set(sorted(there, key=lambda key: lots[key])[:n])
    return [key for key in there if key in chosen]


EMPTY = "the answer is empty"


def in_order(
    chosen: Sequence[str],
    asked: PromptPool,
    matched: MatchedPrompts,
    writers: Sequence[Writer],
    found: Mapping[str, Answers],
    strong_model: str | None,
) -> Iterator[TierRow]:
    """Prompt by prompt in input order: the strong response, then the weak models' in theirs.

    A weak answer has no column of the record: a column may tell of the response that stood there.
    """
    for key in chosen:
        example = asked.examples[key]
        high = of_example(matched.strong[key], "high", strong_model)
        yield replace(high, prompt=example.prompt, tools=example.tools)
        for writer in writers:
            got = found[writer.name].get(key)
            if got is None or isinstance(got, Problem) or not got["text"]:
                continue
            row = TierRow(example.prompt, Message("assistant", got["text"]), "low", writer.name)
            source = place(example.where)
            yield replace(row, source=source, finished=got["finished"], tokens=got["tokens"], tools=example.tools)


def unmatched(asked: PromptPool, matched: MatchedPrompts) -> Iterator[dict[str, str]]:
    """Prompts without a strong response, with their places."""
    for key, example in asked.examples.items():
        if key not in matched.strong:
            yield {"where": example.where, "prompt_id": key, "reason": "no strong response"}


def unanswered(found: Mapping[str, Answers]) -> Iterator[dict[str, str]]:
    """What a weak model gave no answer to, and why."""
    for name, answers in found.items():
        for key, got in answers.items():
            if no_text(got):
                yield {"prompt_id": key, "model": name, "reason": reason_of(got)}


def demand_answers(found: Mapping[str, Answers], there: bool) -> None:
    """Refuse a low tier of nothing.

    Raises:
        DataError: with the reason that was met most often.
    """
    if there:
        return
    reasons = Counter(reason for answers in found.values() for reason in why_not(answers).elements())
    worst, times = reasons.most_common(1)[0]
    raise DataError(
        f"no weak model has given an answer: {worst} ({times:,} of {reasons.total():,})",
        hint="no tier file is written; problems are tried again on the next run",
    )


def why_not(answers: Answers) -> Counter[str]:
    """Reason -> for how many prompts there is no answer."""
    return Counter(without_numbers(reason_of(got)) for got in answers.values() if no_text(got))


def reason_of(got: Mapping[str, Any] | Problem) -> str:
    return got.reason if isinstance(got, Problem) else EMPTY


def no_text(got: Mapping[str, Any] | Problem) -> bool:
    return isinstance(got, Problem) or not got["text"]


def model_record(writer: Writer, answers: Answers) -> dict[str, Any]:
    """What one weak model did: prompts are answers and problems together."""
    texts = [got for got in answers.values() if not isinstance(got, Problem) and got["text"]]
    return {
        "prompts": len(answers),
        "answers": len(texts),
        "unfinished": sum(not got["finished"] for got in texts),
        "problems": dict(why_not(answers).most_common()),
        "reused": writer.reused,
        **writer.describe(),
    }


def counts(
    asked: PromptPool, strong: PromptPool, matched: MatchedPrompts, chosen: Sequence[str], settings: TierSettings
) -> dict[str, Any]:
    """Where every prompt went."""
    out: dict[str, Any] = {"asked": asked.counts}
    if settings.strong is not None:
        out["strong"] = strong.counts
    return out | {
        "without_strong_response": matched.unmatched,
        "strong_responses_unused": matched.unused,
        "not_drawn": len(matched.strong) - len(chosen),
        "prompts": len(chosen),
    }
