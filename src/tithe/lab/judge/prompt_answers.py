"""Let a model answer a prompt set, and read files of answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tithe.data.counts import RecordCounts, note_sentences
from tithe.data.ids import prompt_id
from tithe.data.outfile import atomic
from tithe.data.prompts import read_prompt_set
from tithe.data.sniff import container_suffix, sniff
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.lab.judge.settings import AnswerSettings
from tithe.lab.writing.answering import make_writer
from tithe.planner import without_details
from tithe.records import BadRow, Example, Problem
from tithe.report.reporter import Reporter
from tithe.run.folder import (
    DROPPED,
    RECORD,
    check_places,
    default_folder,
    recorded_run,
    remove_partial_files,
    run_folder,
    write_json,
)

SHOWN = 60  # characters of a prompt that a message shows


@dataclass(frozen=True)
class AnswerSet:
    """The prompts or answers of a file, by item.

    Args:
        name: the file, for messages.
        examples: item -> example, in the order of the file. A repeated prompt is an item of its own, with `-1`, `-2`,
            ... after its id: WizardLM's prompt set has one twice, and the papers count it twice.
        bad: records that could not be read.
        read: counts of the records.
    """

    name: str
    examples: Mapping[str, Example]
    bad: Sequence[BadRow] = ()
    read: RecordCounts = field(default_factory=RecordCounts)

    @classmethod
    def of(cls, name: str, items: Iterable[Example | BadRow]) -> AnswerSet:
        """Read all records of a file.

        Raises:
            DataError: no record can be read; names the first one and what is wrong with it.
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
        """Return the number of records and notes on them."""
        read = self.read.as_dict()
        return {"records": read["records"], "notes": read["notes"]}

    def __len__(self) -> int:
        return len(self.examples)

    def without(self, other: AnswerSet) -> Iterator[Example]:
        """Return the examples whose prompt is not in the other file."""
        return (example for item, example in self.examples.items() if item not in other.examples)

    def first_words(self) -> str:
        """Return the beginning of the first prompt."""
        text = " ".join(next(iter(self.examples.values())).prompt[-1].content.split())
        return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def shared_items(a: AnswerSet, b: AnswerSet) -> list[str]:
    """Return the items that both files answer, in the order of A.

    Raises:
        DataError: there are none; shows the first prompt of either file.
    """
    shared = [item for item in a.examples if item in b.examples]
    if not shared:
        raise DataError(
            f"none of the {len(a):,} prompts of `{a.name}` is among the {len(b):,} of `{b.name}`",
            hint=f"they begin with `{a.first_words()}` and `{b.first_words()}`: prompts are matched by their text",
        )
    return shared


@dataclass(frozen=True)
class AnswerResult:
    """The answers to a prompt set; `record` has the counts."""

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
    """Let a model answer a prompt set; an answer depends only on its prompt, the model and the settings.

    Args:
        settings: prompts, model, and how it writes.
        output: file for the answers, JSON lines with `prompt_id`, `messages` or `prompt`, and `response`.
        folder: the run folder, which stores answers; beside the output by default.
        overwrite: replace `output` if it exists.
        reporter: receives progress and messages.

    Raises:
        TitheError: anything that stops the run; prompts answered until then are in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    source = Path(settings.prompts).expanduser()
    check_reviews_file(output, overwrite, [source], folder)
    asked = AnswerSet.of(settings.prompts, islice(read_prompt_set(source), settings.limit))
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
    with run_folder(folder) as place, recorded_run(folder, reporter, lambda: base) as keeper:
        keeper.record = lambda: base | {"counts": {"prompts": len(asked), **asked.counts}, "model": writer.describe()}
        keeper.stored = lambda: writer.stored
        reporter.phase("answering")
        reporter.expect(len(asked))
        try:
            said = writer.answers(asked.examples, place, reporter)
        finally:
            reporter.done()
        problems = {item: one.reason for item, one in said.items() if isinstance(one, Problem)}
        there = {item: one for item, one in said.items() if not isinstance(one, Problem)}
        record = base | {
            "counts": count_answers(asked, [*there.values()], problems),
            "model": writer.describe() | {"reused": writer.reused},
            "seconds": round(time.monotonic() - began, 2),
            **keeper.finished(),
        }
        keeper.record = lambda: record
        bad = [{"where": row.where, "reason": row.reason} for row in asked.bad]
        none = [{"where": asked.examples[item].where, "item": item, "reason": why} for item, why in problems.items()]
        # What was left out, and why, is written even if there is no answer at all.
        write_left_out(bad + none, folder)
        write_json(folder / RECORD, record)
        demand_answers(settings, problems, len(asked))
        remove_partial_files(output)
        with atomic(output, overwrite=True) as stream:
            for item, example in asked.examples.items():
                if item in there:
                    stream.write(answer_line(item, example, there[item], settings.model))
    return AnswerResult(output, record)


def count_answers(asked: AnswerSet, there: Sequence[Mapping[str, Any]], problems: Mapping[str, str]) -> dict[str, Any]:
    """Count what became of the prompts."""
    return {
        "prompts": len(asked),
        "answers": len(there),
        "empty": sum(not one["text"] for one in there),
        "unfinished": sum(not one["finished"] for one in there),
        "problems": dict(Counter(map(without_details, problems.values())).most_common()),
        "bad_rows": dict(Counter(row.reason for row in asked.bad).most_common()),
        **asked.counts,
    }


def demand_answers(settings: AnswerSettings, problems: Mapping[str, str], asked: int) -> None:
    """Check that there is an answer.

    Raises:
        DataError: there is none; gives the most frequent reason.
    """
    if len(problems) < asked:
        return
    worst, times = Counter(problems.values()).most_common(1)[0]
    raise DataError(
        f"`{settings.model}` has answered none of {asked:,} prompts: {worst} ({times:,})",
        hint="no file is written; problems are tried again on the next run",
    )


def answer_line(item: str, example: Example, said: Mapping[str, Any], model: str) -> bytes:
    """Return one line of the output: a single turn as `prompt`, a dialogue as `messages`."""
    asked: dict[str, Any] = {"messages": [message.as_dict() for message in example.prompt]}
    if len(example.prompt) == 1:
        asked = {"prompt": example.prompt[0].content}
    out = {"prompt_id": item, **asked, "response": said["text"], "model": model}
    return json.dumps(out | {"finished": said["finished"], "tokens": said["tokens"]}).encode() + b"\n"


def check_reviews_file(output: Path, overwrite: bool, sources: Sequence[Path], folder: Path) -> None:
    """Check that the output can be written, before any model is asked.

    Raises:
        SettingsError: it is not a JSON lines file, is there already, or is one of the sources.
    """
    if container_suffix(output) not in (".jsonl", ".ndjson"):
        raise SettingsError(
            f"this is written as JSON lines, not to `{output}`", hint=f"name it `{output.with_suffix('.jsonl').name}`"
        )
    for source in sources:
        check_places(output, overwrite, str(source), folder)


def write_left_out(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Write the records that were left out to the run folder, with their reasons."""
    with atomic(folder / DROPPED, overwrite=True) as stream:
        for one in rows:
            stream.write(json.dumps(one).encode() + b"\n")
