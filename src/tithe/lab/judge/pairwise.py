"""Judge two files of answers pairwise, and write the reviews and their tally."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.data.counts import note_sentences
from tithe.data.outfile import atomic
from tithe.data.prompts import read_answers
from tithe.data.sniff import sniff
from tithe.errors import DataError
from tithe.extras import versions
from tithe.lab.evaluate.measured import Measured
from tithe.lab.judge.judge_loop import ORDERS, JudgeLoop, JudgeReply, Pair, prompt_text, reviews_of
from tithe.lab.judge.prompt_answers import AnswerSet, check_reviews_file, shared_items, write_left_out
from tithe.lab.judge.settings import JudgeSettings
from tithe.lab.judge.tally import LEVEL, WORDS, Review, ReviewScores, Tally, judge_measured, read_reviews
from tithe.lab.judge.tally import tally as count
from tithe.lab.writing.answering import make_writer
from tithe.records import Problem
from tithe.report.reporter import Reporter
from tithe.run.folder import DROPPED, RECORD, default_folder, recorded_run, remove_partial_files, run_folder, write_json

NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class JudgeResult:
    """A judge's verdicts on two models' answers.

    Args:
        tally: wins of A over B, with the win rate's interval.
        measured: +1, 0 or -1 per prompt.
        record: the run record.
        reviews: one per prompt that both files answer, in the order of A.
    """

    tally: Tally
    measured: Measured = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    reviews: Sequence[Review] = field(repr=False)


def compare(
    settings: JudgeSettings,
    a: Path,
    b: Path,
    output: Path,
    *,
    folder: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> JudgeResult:
    """Let a judge compare the answers of A with those of B, each pair in both orders.

    Args:
        settings: who judges, and how.
        a: file of A's answers, JSON lines or JSON.
        b: file of B's answers; prompts are matched by their text.
        output: file for the reviews, JSON lines.
        folder: the run folder, which stores the judge's replies; beside the output by default.
        overwrite: replace `output` if it exists.
        reporter: receives progress and messages.

    Raises:
        TitheError: anything that stops the run, or there is no verdict at all; replies that came are in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    check_reviews_file(output, overwrite, [a, b], folder)
    sides = [AnswerSet.of(str(path), read_answers(path)) for path in (a, b)]
    digests = [sniff(path).digest() for path in (a, b)]
    pairs = [Pair(item, sides[0].examples[item], sides[1].examples[item]) for item in shared_items(*sides)]
    for side in sides:
        for sentence in note_sentences(side.counts, f"`{side.name}`"):
            reporter.say(sentence)
    judge = make_writer(settings.who, settings, settings.endpoint, hold=0)  # replies may cost money: store each at once
    judge.check()
    base = describe(settings, sides, digests) | {"counts": count_answers(sides, pairs)}
    with run_folder(folder) as place, recorded_run(folder, reporter, lambda: base) as keeper:
        loop = JudgeLoop(judge, settings.attempts, place, reporter)
        keeper.record = lambda: base | {"judge": loop.as_dict(), "seconds": round(time.monotonic() - began, 2)}
        keeper.stored = lambda: judge.stored
        replies = loop.ask_about([pair for pair in pairs if not pair.same])
        reviews = reviews_of(pairs, replies)
        found = count(reviews, settings.level)
        record = keeper.record() | {"tally": found.as_dict()} | keeper.finished()
        keeper.record = lambda: record
        # What was left out, and why, is written even if there is no verdict at all.
        write_left_out([*unpaired_rows(sides), *undecided_rows(pairs, reviews)], folder)
        write_json(folder / RECORD, record)
        demand_verdict(settings, reviews, replies, folder)
        remove_partial_files(output)
        with atomic(output, overwrite=True) as stream:
            for pair, review in zip(pairs, reviews, strict=True):
                stream.write(review_line(pair, review, replies.get(pair.item, {}), settings))
    name = settings.name or container_stem(a)
    about = {key: record[key] for key in ("settings", "versions", "answers")}
    return JudgeResult(found, judge_measured(reviews, name, about), record, reviews)


def tally(path: Path, *, level: float = LEVEL) -> Tally:
    """Count a file of reviews: ours, or one of Cherry_LLM's.

    Raises:
        DataError: the file cannot be read, or a record is not a review.
    """
    return count(read_reviews(path), level)


def describe(settings: JudgeSettings, sides: Sequence[AnswerSet], digests: Sequence[str]) -> dict[str, Any]:
    """Return what the verdicts depend on."""
    read = [{"source": side.name, "digest": digest} for side, digest in zip(sides, digests, strict=True)]
    return {"settings": settings.model_dump(mode="json"), "versions": versions(), "answers": read}


def count_answers(sides: Sequence[AnswerSet], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Count what became of the answers."""
    a, b = sides
    return {
        "a": {"answers": len(a), "bad_rows": len(a.bad), "unmatched": sum(1 for _ in a.without(b)), **a.counts},
        "b": {"answers": len(b), "bad_rows": len(b.bad), "unmatched": sum(1 for _ in b.without(a)), **b.counts},
        "pairs": len(pairs),
        "same_answer": sum(pair.same for pair in pairs),
    }


def unpaired_rows(sides: Sequence[AnswerSet]) -> Iterator[dict[str, str]]:
    """Yield every record that is in no pair, with its place and the reason."""
    for side, other in zip(sides, reversed(sides), strict=True):
        yield from ({"where": row.where, "reason": row.reason} for row in side.bad)
        reason = f"`{other.name}` has no answer to this prompt"
        yield from ({"where": example.where, "reason": reason} for example in side.without(other))


def undecided_rows(pairs: Sequence[Pair], reviews: Sequence[Review]) -> Iterator[dict[str, str]]:
    """Yield every pair without a verdict, and the reason."""
    for pair, review in zip(pairs, reviews, strict=True):
        if isinstance(review.value, Problem):
            yield {"where": pair.a.where, "item": pair.item, "reason": f"{NO_VERDICT}: {review.value.reason}"}


def demand_verdict(
    settings: JudgeSettings, reviews: Sequence[Review], replies: Mapping[str, Mapping[str, JudgeReply]], folder: Path
) -> None:
    """Check that the judge gave a verdict.

    Raises:
        DataError: it gave none; has counts, the most frequent reason, and the beginning of one reply.
    """
    asked = [review.value for review in reviews if not review.same]
    why = Counter(value.reason for value in asked if isinstance(value, Problem))
    if not asked or why.total() < len(asked):
        return
    said = [one.reply for orders in replies.values() for one in orders.values() if one.reply is not None]
    shown = f", for example `{' '.join(said[0].split())[:80]}`" if said else ""
    worst, times = why.most_common(1)[0]
    raise DataError(
        f"the judge `{settings.who}` gave no verdict on any of {len(asked):,} pairs: {2 * len(asked):,} reviews of up "
        f"to {settings.attempts} attempts, {len(said):,} with a reply{shown}; {worst} ({times:,} pairs)",
        hint=f"all replies are in `{folder}`; a judge has to follow instructions, a small model often does not"
        if said
        else f"`{folder / DROPPED}` has every pair with its reason; what failed is tried again on the next run",
    )


def review_line(pair: Pair, review: Review, replies: Mapping[str, JudgeReply], settings: JudgeSettings) -> bytes:
    """Return one line of the file of reviews."""
    value = review.value
    out: dict[str, Any] = {
        "item": pair.item,
        "prompt": prompt_text(pair.a.prompt),
        "verdict": NO_VERDICT if isinstance(value, Problem) else WORDS[value],
        "a": pair.a.response.content,
        "b": pair.b.response.content,
        "judge": settings.who,
        "same": review.same,
    }
    for order, scores in zip(ORDERS, (review.given, review.swapped), strict=True):
        out[order] = {"a": scores.a, "b": scores.b} if isinstance(scores, ReviewScores) else {"problem": scores.reason}
        if order in replies:
            out[order] |= {"reply": replies[order].reply, "attempts": replies[order].attempts}
    return json.dumps(out).encode() + b"\n"


def container_stem(path: Path) -> str:
    """Return a file's name without its endings: `a` of `a.jsonl.gz`."""
    return path.name.partition(".")[0] or path.name
