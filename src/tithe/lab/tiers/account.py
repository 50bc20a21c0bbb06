"""What became of every prompt of a build: rows of the tier file, counts, and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tithe.errors import DataError
from tithe.lab.tiers.matching import Matched, Pool
from tithe.lab.tiers.records import TierRow, of_example, place
from tithe.lab.tiers.settings import TierSettings
from tithe.lab.writing.answering import Answers, Writer
from tithe.planner import without_numbers
from tithe.records import Message, Problem

EMPTY = "the answer is empty"


def in_order(
    chosen: Sequence[str],
    asked: Pool,
    matched: Matched,
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


def unmatched(asked: Pool, matched: Matched) -> Iterator[dict[str, str]]:
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
    asked: Pool, strong: Pool, matched: Matched, chosen: Sequence[str], settings: TierSettings
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
