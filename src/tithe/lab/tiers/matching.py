"""Match prompts with their strong responses, draw a sample, and combine both with the weak models' answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tithe.data.counts import RecordCounts
from tithe.data.ids import prompt_id
from tithe.errors import DataError
from tithe.lab.tiers.settings import TierSettings
from tithe.lab.tiers.tier_rows import TierRow, file_and_line, of_example
from tithe.lab.writing.answering import Answers, Writer
from tithe.planner import without_details
from tithe.records import BadRow, Example, Message, Problem

SHOWN = 60  # characters of a prompt in a message
EMPTY = "the answer is empty"


@dataclass(frozen=True)
class PromptPool:
    """The distinct prompts of a data set, each with its first record.

    Args:
        name: of the data set, for messages.
        examples: prompt id -> example, in input order.
        repeated: records whose prompt occurred before.
        bad: records that could not be read.
        read: counts of the records.
    """

    name: str
    examples: Mapping[str, Example]
    repeated: Sequence[Example] = ()
    bad: Sequence[BadRow] = ()
    read: RecordCounts = field(default_factory=RecordCounts)

    @classmethod
    def of(cls, name: str, items: Iterable[Example | BadRow]) -> PromptPool:
        """Collect the prompts of a data set.

        Raises:
            DataError: no record can be read; the message has the first one's reason.
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

    def counts(self) -> dict[str, object]:
        """Return the counts of records and prompts."""
        bad = Counter(row.reason for row in self.bad)
        return {
            "records": self.read.records,
            "prompts": len(self),
            "repeated_prompts": len(self.repeated),
            "bad_rows": dict(bad.most_common()),
            "notes": self.read.as_dict()["notes"],
        }

    def left_out(self) -> Iterator[dict[str, str]]:
        """Yield every record that was left out, with its reason."""
        yield from ({"where": row.where, "reason": row.reason} for row in self.bad)
        yield from ({"where": example.where, "reason": "the same prompt again"} for example in self.repeated)


@dataclass(frozen=True)
class MatchedPrompts:
    """Prompts that have a strong response.

    Args:
        strong: prompt id -> example with the strong response, in the order of the prompts.
        unmatched: number of prompts without a strong response.
        unused: number of strong responses to other prompts.
    """

    strong: Mapping[str, Example]
    unmatched: int
    unused: int


def match(asked: PromptPool, strong: PromptPool) -> MatchedPrompts:
    """Match prompts and strong responses by the text of the prompts.

    Raises:
        DataError: no prompt is in both; the message shows the first of each.
    """
    pairs = {key: strong.examples[key] for key in asked.examples if key in strong.examples}
    if not pairs:
        raise DataError(
            f"none of the {len(asked):,} prompts of `{asked.name}` is among the {len(strong):,} of `{strong.name}`",
            hint=f"they begin with `{beginning(asked)}` and `{beginning(strong)}`: prompts are matched by their words",
        )
    return MatchedPrompts(pairs, len(asked) - len(pairs), len(strong) - len(pairs))


def beginning(pool: PromptPool) -> str:
    """Return the first words of the first prompt."""
    text = " ".join(next(iter(pool.examples.values())).prompt[-1].content.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def draw(keys: Iterable[str], n: int | None, seed: int) -> list[str]:
    """Draw `n` prompts at random, in their own order; a smaller draw is a subset of a larger one."""
    there = list(keys)
    if n is None or n >= len(there):
        return there
    # A hash per prompt instead of a generator: the same prompts are drawn whatever else is in the data set.
    lots = {key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in there}
    chosen = set(sorted(there, key=lambda key: lots[key])[:n])
    return [key for key in there if key in chosen]


def tier_rows(
    chosen: Sequence[str],
    asked: PromptPool,
    matched: MatchedPrompts,
    writers: Sequence[Writer],
    found: Mapping[str, Answers],
    strong_model: str | None,
) -> Iterator[TierRow]:
    """Yield the rows prompt by prompt: the strong response, then each weak model's answer.

    Weak answers get no columns of the record, since these may describe its original response.
    """
    for key in chosen:
        example = asked.examples[key]
        high = of_example(matched.strong[key], "high", strong_model)
        yield replace(high, prompt=example.prompt, tools=example.tools)  # matched prompts may differ in white space
        for writer in writers:
            got = found[writer.name].get(key)
            if got is None or isinstance(got, Problem) or not got["text"]:
                continue
            response, source = Message("assistant", got["text"]), file_and_line(example.where)
            facts = {"finished": got["finished"], "tokens": got["tokens"], "tools": example.tools}
            yield TierRow(example.prompt, response, "low", writer.name, source, **facts)


def unmatched(asked: PromptPool, matched: MatchedPrompts) -> Iterator[dict[str, str]]:
    """Yield the prompts without a strong response, with their places."""
    for key, example in asked.examples.items():
        if key not in matched.strong:
            yield {"where": example.where, "prompt_id": key, "reason": "no strong response"}


def unanswered(found: Mapping[str, Answers]) -> Iterator[dict[str, str]]:
    """Yield the prompts that a weak model did not answer, and why."""
    for name, answers in found.items():
        for key, got in answers.items():
            if reason := why_none(got):
                yield {"prompt_id": key, "model": name, "reason": reason}


def demand_answers(found: Mapping[str, Answers], there: bool) -> None:
    """Check that the low tier is not empty.

    Raises:
        DataError: it is; the message has the most frequent reason.
    """
    if there:
        return
    reasons = Counter(reason for answers in found.values() for reason in count_reasons(answers).elements())
    worst, times = reasons.most_common(1)[0]
    raise DataError(
        f"no weak model has given an answer: {worst} ({times:,} of {reasons.total():,})",
        hint="no tier file is written; problems are tried again on the next run",
    )


def count_reasons(answers: Answers) -> Counter[str]:
    """Count the prompts without an answer by reason."""
    return Counter(without_details(reason) for got in answers.values() if (reason := why_none(got)))


def why_none(got: Mapping[str, Any] | Problem) -> str | None:
    """Return why there is no answer; None if there is one."""
    if isinstance(got, Problem):
        return got.reason
    return None if got["text"] else EMPTY


def model_record(writer: Writer, answers: Answers) -> dict[str, Any]:
    """Return the record of a weak model; its prompts are answers plus problems."""
    texts = [got for got in answers.values() if not isinstance(got, Problem) and got["text"]]
    return {
        "prompts": len(answers),
        "answers": len(texts),
        "unfinished": sum(not got["finished"] for got in texts),
        "problems": dict(count_reasons(answers).most_common()),
        "reused": writer.reused,
        **writer.describe(),
    }


def prompt_counts(
    asked: PromptPool, strong: PromptPool, matched: MatchedPrompts, chosen: Sequence[str], settings: TierSettings
) -> dict[str, Any]:
    """Return the counts of prompts at each step."""
    out: dict[str, Any] = {"asked": asked.counts()}
    if settings.strong is not None:
        out["strong"] = strong.counts()
    return out | {
        "without_strong_response": matched.unmatched,
        "strong_responses_unused": matched.unused,
        "not_drawn": len(matched.strong) - len(chosen),
        "prompts": len(chosen),
    }
