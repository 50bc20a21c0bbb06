"""Build a tier file from strong and weak responses, import one, or look at one."""

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
from tithe.data.prompts import read_prompts
from tithe.data.sniff import container_suffix
from tithe.errors import DataError, SettingsError
from tithe.extras import versions
from tithe.lab.tiers.look import CountTokens, demand_both
from tithe.lab.tiers.look import look as look_at
from tithe.lab.tiers.matching import (
    PromptPool,
    demand_answers,
    draw,
    match,
    model_record,
    prompt_counts,
    tier_rows,
    unanswered,
    unmatched,
)
from tithe.lab.tiers.settings import TierImportSettings, TierSettings
from tithe.lab.tiers.tier_rows import Labels, Tier, TierRow, by_file, by_labels, by_pairs, json_line, layout
from tithe.lab.writing.answering import Answers, Writer, make_writer
from tithe.records import BadRow, Example
from tithe.report.reporter import Reporter, say_notes
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
from tithe.run.source import named_dataset


@dataclass(frozen=True)
class TierResult:
    """The rows of a tier file, and facts about them.

    Args:
        rows: in the order of the file.
        record: the run record, including `look`.
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
        settings: prompts, strong responses and weak models.
        output: the tier file, JSON lines.
        folder: the run folder, which keeps answers; next to the output by default.
        overwrite: replace `output` if it is there.
        reporter: gets messages and progress.

    Raises:
        TitheError: the run failed; answers given so far are in the run folder.
    """
    began, reporter, folder = time.monotonic(), reporter or Reporter(), folder or default_folder(output)
    sources = [settings.dataset] + ([settings.strong] if settings.strong is not None else [])
    check_output(output, overwrite, sources, folder)
    # All checks come before the first answer: weak models take hours, or cost money.
    asked, strong, checks = read(settings)
    matched = match(asked, strong)
    chosen = draw(matched.strong, settings.sample, settings.seed)
    writers: list[Writer] = [make_writer(name, settings, settings.endpoint) for name in settings.weak_model]
    for writer in writers:
        writer.check()
    base = describe(settings, checks) | {"counts": prompt_counts(asked, strong, matched, chosen, settings)}
    for check, pool in zip(checks, (asked, strong), strict=False):
        say_notes(reporter, check.dataset, pool.counts(), several=len(checks) > 1)
    with run_folder(folder) as open_folder, recorded_run(folder, reporter, lambda: base) as told:
        told.record = lambda: base | {"weak_models": {w.name: w.describe() for w in writers}}
        told.stored = lambda: sum(writer.stored for writer in writers)
        found = write_answers(writers, {key: asked.examples[key] for key in chosen}, open_folder, reporter)
        for check in checks:
            check.check()
        rows = [*tier_rows(chosen, asked, matched, writers, found, settings.strong_model)]
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


def read(settings: TierSettings) -> tuple[PromptPool, PromptPool, list[InputCheck]]:
    """Read the prompts and the strong responses, which may be in one data set; return their input checks, too."""
    dataset = open_dataset(
        named_dataset(settings.dataset),
        format=settings.format,
        split=settings.split,
        strict=settings.strict,
        limit=settings.limit,
        columns=settings.columns,
    )
    check = InputCheck(dataset)
    if settings.strong is None:
        pool = PromptPool.of(settings.dataset, dataset)
        return pool, pool, [check]
    own = settings.columns
    strong = open_dataset(named_dataset(settings.strong), strict=settings.strict, columns=own, beside=True)
    checks = [check, InputCheck(strong)]
    return PromptPool.of(settings.dataset, read_prompts(dataset)), PromptPool.of(settings.strong, strong), checks


def write_answers(
    writers: Sequence[Writer], asked: Mapping[str, Example], open_folder: Path, reporter: Reporter
) -> dict[str, Answers]:
    """Let each weak model answer, one model after the other."""
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
    """Convert existing tiers to a tier file.

    Args:
        settings: the files, and how they mark the tiers.
        output: the tier file, JSON lines.
        folder: for the run record; next to the output by default.
        overwrite: replace `output` if it is there.
        reporter: gets messages and progress.

    Raises:
        TitheError: a file cannot be read or has no tiers; no tier file is written then.
    """
    folder, reporter = folder or default_folder(output), reporter or Reporter()
    sides: list[tuple[str, Tier | None]] = [(name, None) for name in settings.files]
    sides += [(name, "high") for name in settings.high_file] + [(name, "low") for name in settings.low_file]
    check_output(output, overwrite, [name for name, _ in sides], folder)
    rows, bad, checks = list[TierRow](), list[BadRow](), list[InputCheck]()
    with run_folder(folder), recorded_run(folder, reporter, lambda: describe(settings, checks), stores=None) as told:
        counts: dict[str, Any] = {}
        told.record = lambda: describe(settings, checks) | {"counts": counts}
        for name, tier in sides:
            dataset = open_tier_file(name, settings)
            checks.append(InputCheck(dataset))
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


def open_tier_file(name: str, settings: TierImportSettings) -> Dataset:
    split = None if Path(name).exists() else settings.split  # only hub data sets have splits
    return open_dataset(
        named_dataset(name),
        format=settings.format,
        split=split,
        strict=settings.strict,
        limit=settings.limit,
        columns=settings.columns,
        beside=True,
    )


def items_of(
    dataset: Dataset, tier: Tier | None, settings: TierImportSettings, counts: RecordCounts
) -> Iterator[TierRow | BadRow]:
    """Yield the rows of one file, and count its records."""
    if tier is not None:
        return by_file(dataset, tier, settings.high_model if tier == "high" else settings.low_model, counts)
    if layout(dataset) == "pairs":
        return by_pairs(dataset, counts)
    return by_labels(dataset, Labels(settings.high_tier, settings.low_tier), counts)


def look(source: str | Path, *, model: str | None = None) -> TierResult:
    """Look at a tier file.

    Args:
        source: a file written by `build` or `import_tiers`.
        model: whose tokenizer counts lengths, in addition to characters.

    Raises:
        DataError: it has no column `tier`, other labels, or no readable record.
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
    return TierResult(rows, {"source": str(source), "look": look_at(rows, bad, token_counter(model))})


def token_counter(model: str | None) -> CountTokens | None:
    """Return a function that counts tokens with a model's tokenizer; None without a model."""
    if model is None:
        return None
    from tithe.data.tokens import TextTokenizer
    from tithe.engine.model_source import find_model, load_tokenizer

    tokens = TextTokenizer(load_tokenizer(find_model(model, weights=False)))
    return lambda texts: list(map(len, tokens.encode(texts)))


def check_output(output: Path, overwrite: bool, sources: Sequence[str], folder: Path) -> None:
    """Check before reading that the output can be written.

    Raises:
        TitheError: it is not JSON lines, exists, or is one of the inputs.
    """
    if container_suffix(output) not in (".jsonl", ".ndjson"):
        raise SettingsError(
            f"tiers are written as JSON lines, not to `{output}`", hint=f"name it `{output.with_suffix('.jsonl').name}`"
        )
    for source in sources:
        check_places(output, overwrite, source, folder)


def describe(settings: TierSettings | TierImportSettings, checks: Sequence[InputCheck]) -> dict[str, Any]:
    """Return what the rows depend on, for the run record."""
    read_from = [check.describe() for check in checks]
    return {"settings": settings.model_dump(mode="json"), "versions": versions(), "datasets": read_from}


def write(
    rows: Sequence[TierRow], record: Mapping[str, Any], dropped: Sequence[Mapping[str, str]], output: Path, folder: Path
) -> None:
    """Write the left-out records and the run record; the tier file comes last, so that its presence means success."""
    with atomic(folder / DROPPED, overwrite=True) as stream:
        for one in dropped:
            stream.write(json.dumps(one).encode() + b"\n")
    write_json(folder / RECORD, dict(record))
    remove_partial_files(output)
    with atomic(output, overwrite=True) as stream:
        for row in rows:
            stream.write(json_line(row))
