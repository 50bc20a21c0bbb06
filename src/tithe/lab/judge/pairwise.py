"""Pairwise judging: two files of answers, a judge, reviews, a tally."""

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
from tithe.data.sniff import container_suffix, sniff
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.lab.evaluate.measured import Measured
from tithe.lab.judge.judge_loop import ORDERS, Answers, Court, Heard, Pair, both, reviews_of
from tithe.lab.judge.judge_prompt import told
from tithe.lab.judge.reviews import read_reviews
from tithe.lab.judge.settings import JudgeSettings
from tithe.lab.judge.tally import LEVEL, WORDS, Review, Scored, Tally, judge_measured
from tithe.lab.judge.tally import tally as count
from tithe.lab.writing.answering import make_writer
from tithe.records import Problem
from tithe.report.reporter import Reporter
from tithe.run.folder import DROPPED, RECORD, account, check_places, default_folder, run_folder, sweep, write_json

NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class JudgeResult:
    """What a judge thinks of two models' answers.

    Args:
        tally: wins of A over B, and how sure that is.
        measured: +1, 0 or -1 per prompt.
        record: the run record.
        reviews: one per prompt that both files answer, in A's order.
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
        a: file of answers, JSON lines or JSON.
        b: the other one; prompts are matched by what they say.
        output: the reviews, JSON lines.
        folder: the run folder, which keeps the judge's replies; beside the output by default.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops the run, or no verdict at all; replies that came are in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    check_reviews_file(output, overwrite, [a, b], folder)
    sides = [Answers.of(str(path), read_answers(path)) for path in (a, b)]
    digests = [sniff(path).digest() for path in (a, b)]
    pairs = [Pair(item, sides[0].examples[item], sides[1].examples[item]) for item in both(*sides)]
    for side in sides:
        for sentence in note_sentences(side.counts, f"`{side.name}`"):
            reporter.say(sentence)
    judge = make_writer(settings.who, settings, settings.endpoint, hold=0)
    judge.check()
    base = describe(settings, sides, digests) | {"counts": counts(sides, pairs)}
    with run_folder(folder) as place, account(folder, reporter, lambda: base) as told_so_far:
        court = Court(judge, settings.attempts, place, reporter)
        told_so_far.record = lambda: base | {"judge": court.as_dict(), "seconds": round(time.monotonic() - began, 2)}
        told_so_far.stored = lambda: judge.stored
        heard = court.hear([pair for pair in pairs if not pair.same])
        reviews = reviews_of(pairs, heard)
        found = count(reviews, settings.level)
        record = told_so_far.record() | {"tally": found.as_dict()} | told_so_far.finished()
        told_so_far.record = lambda: record
        write_left_out([*left_out(sides), *without_verdict(pairs, reviews)], folder)
        write_json(folder / RECORD, record)
        demand_verdict(settings, reviews, heard, folder)
        sweep(output)
        with atomic(output, overwrite=True) as stream:
            for pair, review in zip(pairs, reviews, strict=True):
                stream.write(line(pair, review, heard.get(pair.item, {}), settings))
    name = settings.name or container_stem(a)
    about = {key: record[key] for key in ("settings", "versions", "answers")}
    return JudgeResult(found, judge_measured(reviews, name, about), record, reviews)


def tally(path: Path, *, level: float = LEVEL) -> Tally:
    """Count a file of reviews: ours, or one of Cherry_LLM's.

    Raises:
        DataError: the file cannot be read, or a record is no review: which, and what it lacks.
    """
    return count(read_reviews(path), level)


def check_reviews_file(output: Path, overwrite: bool, sources: Sequence[Path], folder: Path) -> None:
    """Raise what stands against writing there, before anybody is asked."""
    if container_suffix(output) not in (".jsonl", ".ndjson"):
        raise SettingsError(
            f"this is written as JSON lines, not to `{output}`", hint=f"name it `{output.with_suffix('.jsonl').name}`"
        )
    for source in sources:
        check_places(output, overwrite, str(source), folder)


def describe(settings: JudgeSettings, sides: Sequence[Answers], digests: Sequence[str]) -> dict[str, Any]:
    """What the verdicts depend on."""
    read = [{"source": side.name, "digest": digest} for side, digest in zip(sides, digests, strict=True)]
    return {"settings": settings.model_dump(mode="json"), "versions": versions(), "answers": read}


def counts(sides: Sequence[Answers], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Where every answer went."""
    a, b = sides
    return {
        "a": {"answers": len(a), "bad_rows": len(a.bad), "unmatched": sum(1 for _ in a.without(b)), **a.counts},
        "b": {"answers": len(b), "bad_rows": len(b.bad), "unmatched": sum(1 for _ in b.without(a)), **b.counts},
        "pairs": len(pairs),
        "same_answer": sum(pair.same for pair in pairs),
    }


def left_out(sides: Sequence[Answers]) -> Iterator[dict[str, str]]:
    """Every record that is in no pair, with its place and why."""
    for side, other in zip(sides, reversed(sides), strict=True):
        yield from ({"where": row.where, "reason": row.reason} for row in side.bad)
        reason = f"`{other.name}` has no answer to this prompt"
        yield from ({"where": example.where, "reason": reason} for example in side.without(other))


def without_verdict(pairs: Sequence[Pair], reviews: Sequence[Review]) -> Iterator[dict[str, str]]:
    """Every pair that the judge gave no verdict on, and why."""
    for pair, review in zip(pairs, reviews, strict=True):
        if isinstance(review.value, Problem):
            yield {"where": pair.a.where, "item": pair.item, "reason": f"{NO_VERDICT}: {review.value.reason}"}


def write_left_out(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    with atomic(folder / DROPPED, overwrite=True) as stream:
        for one in rows:
            stream.write(json.dumps(one).encode() + b"\n")


def demand_verdict(
    settings: JudgeSettings, reviews: Sequence[Review], heard: Mapping[str, Mapping[str, Heard]], folder: Path
) -> None:
    """Refuse reviews of nothing.

    Raises:
        DataError: with counts, the commonest reason, and how one of the replies begins.
    """
    asked = [review.value for review in reviews if not review.same]
    why = Counter(value.reason for value in asked if isinstance(value, Problem))
    if not asked or why.total() < len(asked):
        return
    said = [one.reply for orders in heard.values() for one in orders.values() if one.reply is not None]
    shown = f", for example `{' '.join(said[0].split())[:80]}`" if said else ""
    worst, times = why.most_common(1)[0]
    raise DataError(
        f"the judge `{settings.who}` gave no verdict on any of {len(asked):,} pairs: {2 * len(asked):,} reviews of up "
        f"to {settings.attempts} attempts, {len(said):,} with a reply{shown}; {worst} ({times:,} pairs)",
        hint=f"all replies are in `{folder}`; a judge has to follow instructions, a small model often does not"
        if said
        else f"`{folder / DROPPED}` has every pair with its reason; what failed is tried again on the next run",
    )


def line(pair: Pair, review: Review, heard: Mapping[str, Heard], settings: JudgeSettings) -> bytes:
    """One pair as it stands in the file of reviews."""
    value = review.value
    out: dict[str, Any] = {
        "item": pair.item,
        "prompt": told(pair.a.prompt),
        "verdict": NO_VERDICT if isinstance(value, Problem) else WORDS[value],
        "a": pair.a.response.content,
        "b": pair.b.response.content,
        "judge": settings.who,
        "same": review.same,
    }
    for order, scores in zip(ORDERS, (review.given, review.swapped), strict=True):
        out[order] = {"a": scores.a, "b": scores.b} if isinstance(scores, Scored) else {"problem": scores.reason}
        if order in heard:
            out[order] |= {"reply": heard[order].reply, "attempts": heard[order].attempts}
    return json.dumps(out).encode() + b"\n"


def container_stem(path: Path) -> str:
    """`a` of `a.jsonl.gz`."""
    return path.name.partition(".")[0] or path.name
