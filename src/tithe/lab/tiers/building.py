"""Quality tiers: strong responses and weaker ones to the same prompts, built, imported, looked at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.input_check import InputCheck
from tithe.data.outfile import atomic
from tithe.data.prompts import prompts
from tithe.data.sniff import container_suffix
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.lab.tiers.importing import Labels, by_file, by_labels, by_pairs, layout
from tithe.lab.tiers.look import CountTokens, demand_both
from tithe.lab.tiers.look import look as look_at
from tithe.lab.tiers.matching import (
    Pool,
    counts,
    demand_answers,
    draw,
    in_order,
    match,
    model_record,
    unanswered,
    unmatched,
)
from tithe.lab.tiers.settings import TierImportSettings, TierSettings
from tithe.lab.tiers.tier_rows import Tier, TierRow, line
from tithe.lab.writing.answering import Answers, Writer, make_writer
from tithe.records import BadRow, Example
from tithe.report.reporter import Reporter, say_notes
from tithe.run.folder import DROPPED, RECORD, account, check_places, default_folder, run_folder, sweep, write_json
from tithe.run.source import named_dataset


@dataclass(frozen=True)
class TierResult:
    """A tier file's rows and what is told about them.

    Args:
        rows: as they stand in the file.
        record: the run record, with `look` in it.
    """

    rows: Sequence[TierRow] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)

    @property
    def look(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.record["look"])


def build(
    settings: TierSettings,
    *,
    output: Path,
    folder: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TierResult:
    """Let weak models answer the prompts of strong responses, and write both as tiers.

    Args:
        settings: what and how.
        output: the tier file, JSON lines.
        folder: the run folder, which keeps answers; beside the output by default.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops the run; what was answered before is in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    sources = [settings.dataset] + ([settings.strong] if settings.strong is not None else [])
    check_output(output, overwrite, sources, folder)
    asked, strong, watches = read(settings)
    matched = match(asked, strong)
    chosen = draw(matched.strong, settings.sample, settings.seed)
    writers: list[Writer] = [make_writer(name, settings, settings.endpoint) for name in settings.weak_model]
    for writer in writers:
        writer.check()
    base = describe(settings, watches) | {"counts": counts(asked, strong, matched, chosen, settings)}
    for watch, pool in zip(watches, (asked, strong), strict=False):
        say_notes(reporter, watch.dataset, pool.counts, several=len(watches) > 1)
    with run_folder(folder) as open_folder, account(folder, reporter, lambda: base) as told:
        told.record = lambda: base | {"weak_models": {w.name: w.describe() for w in writers}}
        told.stored = lambda: sum(writer.stored for writer in writers)
        found = answer(writers, {key: asked.examples[key] for key in chosen}, open_folder, reporter)
        for watch in watches:
            watch.check()
        rows = [*in_order(chosen, asked, matched, writers, found, settings.strong_model)]
        demand_answers(found, len(rows) > len(chosen))
        record = base | {
            "weak_models": {w.name: model_record(w, found[w.name]) for w in writers},
            "look": look_at(rows),
            "seconds": round(time.monotonic() - began, 2),
            **told.finished(),
        }
        told.record = lambda: record
        dropped = [*asked.left_out(), *(strong.left_out() if strong is not asked else ())]
        dropped += [*unmatched(asked, matched), *unanswered(found)]
        write(rows, record, dropped, output, folder)
    return TierResult(rows, record)


def read(settings: TierSettings) -> tuple[Pool, Pool, list[InputCheck]]:
    """The prompts, and the strong responses; the same where one data set holds both."""
    dataset = open_dataset(
        named_dataset(settings.dataset),
        format=settings.format,
        split=settings.split,
        strict=settings.strict,
        limit=settings.limit,
    )
    watch = InputCheck(dataset)
    if settings.strong is None:
        pool = Pool.of(settings.dataset, dataset)
        return pool, pool, [watch]
    strong = open_dataset(named_dataset(settings.strong), strict=settings.strict)
    watches = [watch, InputCheck(strong)]
    return Pool.of(settings.dataset, prompts(dataset)), Pool.of(settings.strong, strong), watches


def answer(
    writers: Sequence[Writer], asked: Mapping[str, Example], open_folder: Path, reporter: Reporter
) -> dict[str, Answers]:
    """Each weak model's answers, one model after the other."""
    found = {}
    for writer in writers:
        reporter.phase(f"{writer.name} answers")
        reporter.expect(len(asked))
        try:
            found[writer.name] = writer.answers(asked, open_folder, reporter)
        finally:
            reporter.done()
    return found


def import_tiers(
    settings: TierImportSettings,
    *,
    output: Path,
    folder: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TierResult:
    """Bring tiers that are already there into the one form.

    Args:
        settings: which files, and how they tell the tiers apart.
        output: the tier file, JSON lines.
        folder: where the run record goes; beside the output by default.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: with one sentence; no tier file is written then.
    """
    folder, reporter = folder or default_folder(output), reporter or Reporter()
    sides: list[tuple[str, Tier | None]] = [(name, None) for name in settings.files]
    sides += [(name, "high") for name in settings.high_file] + [(name, "low") for name in settings.low_file]
    check_output(output, overwrite, [name for name, _ in sides], folder)
    rows, bad, watches = list[TierRow](), list[BadRow](), list[InputCheck]()
    with run_folder(folder), account(folder, reporter, lambda: describe(settings, watches), stores=None) as told:
        counts: dict[str, Any] = {}
        told.record = lambda: describe(settings, watches) | {"counts": counts}
        for name, tier in sides:
            dataset = opened(name, settings)
            watches.append(InputCheck(dataset))
            read = RecordCounts(deed="taken")
            for item in items_of(dataset, tier, settings, read):
                (bad if isinstance(item, BadRow) else rows).append(item)  # type: ignore[arg-type]
            counts[name] = read.as_dict()
            say_notes(reporter, dataset, counts[name], several=len(sides) > 1)
        demand_both(rows, bad, ", ".join(name for name, _ in sides))
        record = told.record() | {"look": look_at(rows, bad)} | told.finished()
        told.record = lambda: record
        write(rows, record, [{"where": row.where, "reason": row.reason} for row in bad], output, folder)
    return TierResult(rows, record)


def opened(name: str, settings: TierImportSettings) -> Dataset:
    split = None if Path(name).exists() else settings.split
    return open_dataset(
        named_dataset(name), format=settings.format, split=split, strict=settings.strict, limit=settings.limit
    )


def items_of(
    dataset: Dataset, tier: Tier | None, settings: TierImportSettings, counts: RecordCounts
) -> Iterator[TierRow | BadRow]:
    """The rows of one file, whose records are counted on the way."""
    if tier is not None:
        return by_file(dataset, tier, settings.high_model if tier == "high" else settings.low_model, counts)
    if layout(dataset) == "pairs":
        return by_pairs(dataset, counts)
    return by_labels(dataset, Labels(settings.high_tier, settings.low_tier), counts)


def look(source: str | Path, *, model: str | None = None) -> TierResult:
    """Look at a tier file.

    Args:
        source: what `build` or `import_tiers` wrote.
        model: whose tokenizer counts lengths, besides characters.

    Raises:
        DataError: it has no column `tier`, other labels, or nothing that can be read.
    """
    dataset = open_dataset(source)
    if "tier" not in dataset.columns_seen:
        raise DataError(
            f"`{source}` has no column `tier`", hint="`tithe tiers import` makes a tier file of other layouts"
        )
    rows, bad = list[TierRow](), list[BadRow]()
    for item in by_labels(dataset, Labels()):
        (bad if isinstance(item, BadRow) else rows).append(item)  # type: ignore[arg-type]
    if not rows:
        raise DataError(f"no record of `{source}` can be read: the first, {bad[0].where}: {bad[0].reason}")
    return TierResult(rows, {"source": str(source), "look": look_at(rows, bad, counter(model))})


def counter(model: str | None) -> CountTokens | None:
    """Counts tokens as a model does; needs its tokenizer alone."""
    if model is None:
        return None
    from tithe.data.tokens import Tokens
    from tithe.engine.model_source import find_model, load_tokenizer

    tokens = Tokens(load_tokenizer(find_model(model, weights=False)))
    return lambda texts: list(map(len, tokens.encode(texts)))


def check_output(output: Path, overwrite: bool, sources: Sequence[str], folder: Path) -> None:
    """Raise what stands against writing there, before anything is read."""
    if container_suffix(output) not in (".jsonl", ".ndjson"):
        raise SettingsError(
            f"tiers are written as JSON lines, not to `{output}`", hint=f"name it `{output.with_suffix('.jsonl').name}`"
        )
    for source in sources:
        check_places(output, overwrite, source, folder)


def describe(settings: TierSettings | TierImportSettings, watches: Sequence[InputCheck]) -> dict[str, Any]:
    """What the rows depend on, for the run record."""
    read_from = [watch.describe() for watch in watches]
    return {"settings": settings.model_dump(mode="json"), "versions": versions(), "datasets": read_from}


def write(
    rows: Sequence[TierRow], record: Mapping[str, Any], dropped: Sequence[Mapping[str, str]], output: Path, folder: Path
) -> None:
    """What was left out, the record, then the tier file: where that one is, everything is."""
    with atomic(folder / DROPPED, overwrite=True) as stream:
        for one in dropped:
            stream.write(json.dumps(one).encode() + b"\n")
    write_json(folder / RECORD, dict(record))
    sweep(output)
    with atomic(output, overwrite=True) as stream:
        for row in rows:
            stream.write(line(row))
