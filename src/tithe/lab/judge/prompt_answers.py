"""A model answers a prompt set."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tithe.data.counts import note_sentences
from tithe.data.outfile import atomic
from tithe.data.prompts import read_prompt_set
from tithe.data.sniff import sniff
from tithe.errors import DataError
from tithe.extras import versions
from tithe.lab.judge.judge_loop import Answers
from tithe.lab.judge.pairwise import check_reviews_file, write_left_out
from tithe.lab.judge.settings import AnswerSettings
from tithe.lab.writing.answering import make_writer
from tithe.planner import without_numbers
from tithe.records import Example, Problem
from tithe.report.reporter import Reporter
from tithe.run.folder import RECORD, account, default_folder, run_folder, sweep, write_json


@dataclass(frozen=True)
class AnswerResult:
    """What came of a prompt set; `record` has the counts."""

    output: Path
    record: Mapping[str, Any] = field(repr=False)


def answer(
    settings: AnswerSettings,
    output: Path,
    *,
    folder: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> AnswerResult:
    """Let a model answer a prompt set; an answer depends on the prompt, the model and the settings alone.

    Args:
        settings: what and how.
        output: the answers, JSON lines with `prompt_id`, `messages` or `prompt`, and `response`.
        folder: the run folder, which keeps answers; beside the output by default.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops the run; what was answered before is in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    source = Path(settings.prompts).expanduser()
    check_reviews_file(output, overwrite, [source], folder)
    asked = Answers.of(settings.prompts, islice(read_prompt_set(source), settings.limit))
    for sentence in note_sentences(asked.counts):
        reporter.say(sentence)
    digest = sniff(source).digest()
    writer = make_writer(settings.model, settings, settings.endpoint)
    writer.check()
    base = {
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "prompts": {"source": settings.prompts, "digest": digest},
    }
    with run_folder(folder) as place, account(folder, reporter, lambda: base) as told:
        told.record = lambda: base | {"counts": {"prompts": len(asked), **asked.counts}, "model": writer.describe()}
        told.stored = lambda: writer.stored
        reporter.phase("answering")
        reporter.expect(len(asked))
        try:
            said = writer.answers(asked.examples, place, reporter)
        finally:
            reporter.done()
        problems = {item: one.reason for item, one in said.items() if isinstance(one, Problem)}
        there = {item: one for item, one in said.items() if not isinstance(one, Problem)}
        record = base | {
            "counts": counts(asked, [*there.values()], problems),
            "model": writer.describe() | {"reused": writer.reused},
            "seconds": round(time.monotonic() - began, 2),
            **told.finished(),
        }
        told.record = lambda: record
        bad = [{"where": row.where, "reason": row.reason} for row in asked.bad]
        none = [{"where": asked.examples[item].where, "item": item, "reason": why} for item, why in problems.items()]
        write_left_out(bad + none, folder)
        write_json(folder / RECORD, record)
        demand_answers(settings, problems, len(asked))
        sweep(output)
        with atomic(output, overwrite=True) as stream:
            for item, example in asked.examples.items():
                if item in there:
                    stream.write(line(item, example, there[item], settings.model))
    return AnswerResult(output, record)


def counts(asked: Answers, there: Sequence[Mapping[str, Any]], problems: Mapping[str, str]) -> dict[str, Any]:
    """Where every prompt went."""
    return {
        "prompts": len(asked),
        "answers": len(there),
        "empty": sum(not one["text"] for one in there),
        "unfinished": sum(not one["finished"] for one in there),
        "problems": dict(Counter(map(without_numbers, problems.values())).most_common()),
        "bad_rows": dict(Counter(row.reason for row in asked.bad).most_common()),
        **asked.counts,
    }


def demand_answers(settings: AnswerSettings, problems: Mapping[str, str], asked: int) -> None:
    """Refuse a file of no answers.

    Raises:
        DataError: with the reason that was met most often.
    """
    if len(problems) < asked:
        return
    worst, times = Counter(problems.values()).most_common(1)[0]
    raise DataError(
        f"`{settings.model}` has answered none of {asked:,} prompts: {worst} ({times:,})",
        hint="no file is written; problems are tried again on the next run",
    )


def line(item: str, example: Example, said: Mapping[str, Any], model: str) -> bytes:
    """One answer: a single turn as `prompt`, a dialogue as `messages`."""
    alone = len(example.prompt) == 1
    asked: dict[str, Any] = (
        {"prompt": example.prompt[0].content} if alone else {"messages": [m.as_dict() for m in example.prompt]}
    )
    out = {"prompt_id": item, **asked, "response": said["text"], "model": model}
    return json.dumps(out | {"finished": said["finished"], "tokens": said["tokens"]}).encode() + b"\n"
