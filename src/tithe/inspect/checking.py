"""Check a data set: read it, count what is wrong with it, and compare the rates with limits and a baseline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.contamination.overlap import NGRAM, ItemSearch
from tithe.data.counts import RecordCounts, note_sentences
from tithe.data.dataset import Dataset
from tithe.data.survey import survey_dataset
from tithe.duplicates.near import NearDuplicates
from tithe.errors import DataError, MissingExtraError, SettingsError
from tithe.extras import versions
from tithe.inspect.check_report import demand_suffix, markdown, write_report
from tithe.inspect.contents import Contents
from tithe.inspect.cutting import LengthCheck, open_length_check
from tithe.inspect.languages import find_detector
from tithe.inspect.limits import Rate, compare, parse_share, percent, read_baseline
from tithe.inspect.repeats import DuplicateGroups
from tithe.inspect.settings import CheckSettings
from tithe.planner import windows
from tithe.records import BadRow, Example
from tithe.report.reporter import Reporter
from tithe.run.folder import check_places
from tithe.run.source import DataSource

VERSION = 1  # of the record
BATCH = 512
PLACES = 1000  # of bad rows, for each reason
EMPTY = ("the response is empty", "the response is only reasoning")  # reasons of bad rows


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Args:
        record: everything, as `--json` prints it.
    """

    record: dict[str, Any] = field(repr=False)

    @property
    def failures(self) -> list[str]:
        """A sentence for each rate above its limit, or above the baseline."""
        return list(self.record["failures"])

    @property
    def ok(self) -> bool:
        """Whether every limit is kept."""
        return not self.record["failures"]

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {percent(one['rate'])}" for name, one in self.record["rates"].items())
        return f"<CheckResult of {self.record['dataset']['source']}: {rates}>"

    def markdown(self) -> str:
        """Return the report as Markdown."""
        return markdown(self.record)

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the report: `.html` a page, `.md` Markdown, `.json` the record.

        Raises:
            OutputError: the file exists or cannot be written.
            SettingsError: another suffix.
        """
        write_report(self.record, Path(path), overwrite=overwrite)


@dataclass
class BadPlaces:
    """Where bad rows are.

    Args:
        records: records with a bad row; with all turns, a record may have several.
        empty: those of them whose response is empty.
        places: reason -> the first places.
    """

    records: int = 0
    empty: int = 0
    places: dict[str, list[str]] = field(default_factory=dict)
    _last: int = -1
    _last_empty: int = -1

    def add(self, row: BadRow) -> None:
        self.records += row.row != self._last
        self._last = row.row
        if row.reason in EMPTY:
            self.empty += row.row != self._last_empty
            self._last_empty = row.row
        there = self.places.setdefault(row.reason, [])
        if len(there) < PLACES:
            there.append(row.where)

    def as_list(self, counts: Counter[str]) -> list[dict[str, Any]]:
        return [{"reason": why, "count": n, "at": self.places[why]} for why, n in counts.most_common()]


def check(settings: CheckSettings, reporter: Reporter | None = None) -> CheckResult:
    """Look a data set over.

    Args:
        settings: what to look for, and the limits.
        reporter: gets progress.

    Raises:
        TitheError: the data set, the model, an evaluation file or the baseline cannot be read, or a limit is given for
            something that is not looked for.
    """
    began, reporter = time.monotonic(), reporter or Reporter()
    demand_looked_for(settings)
    before = None if settings.baseline is None else read_baseline(Path(settings.baseline).expanduser())
    near, why_no_near = open_near(settings)
    cutting = open_length_check(settings)
    source = DataSource.open(settings)
    looking = Reading(
        source.dataset, Contents(find_detector()), DuplicateGroups(near), cutting, search_of(settings, source)
    )
    reporter.phase("checking")
    total, exact = source.size()
    reporter.expect(total, about=not exact)
    try:
        looking.read(reporter)
    finally:
        reporter.done()
    survey = survey_dataset(source.dataset)
    source.input_check.check()
    skipped = {
        "near_duplicates": why_no_near,
        "truncated": None if cutting else "no `--max-length` and no `--model`",
        "contaminated": None if looking.search else "no `--contamination FILE`",
    }
    record: dict[str, Any] = {
        "check": VERSION,
        "versions": dict(versions(("numpy", "datasketch", "py3langid", "tokenizers", "transformers"))),
        "dataset": source.input_check.describe(),
        "settings": {name: value for name, value in settings.model_dump(mode="json").items() if value is not None},
        "rates": {name: rate.as_dict() for name, rate in looking.rates().items()},
        "measured_by": looking.measured_by(),
        "skipped": {name: why for name, why in skipped.items() if why},
        **looking.record(),
        "columns": dict(survey.columns),
        "roles_as_written": dict(survey.roles.most_common()),
        "traits": dict(survey.traits.most_common()),
        "notes": [*source.dataset.notes, *note_sentences(looking.counts.as_dict())],
    }
    record |= judge(record, settings, before, looking.rates())
    return CheckResult(record | {"seconds": round(time.monotonic() - began, 2)})


def check_output(settings: CheckSettings, output: Path | None, overwrite: bool) -> None:
    """Check where the report goes, before anything is read.

    Raises:
        TitheError: it cannot go there.
    """
    if output is not None:
        demand_suffix(output)
    read = [*settings.contamination, *(name for name in (settings.baseline, settings.model) if name)]
    check_places(output, overwrite, settings.dataset, None, read)


def demand_passed(result: CheckResult) -> None:
    """Raise an error if a rate is above its limit, or grew over the baseline.

    Raises:
        DataError: says which, in one sentence.
    """
    if not result.ok:
        raise DataError(
            f"`{result.record['dataset']['source']}` fails the check: {'; '.join(result.failures)}",
            hint="`-o check.html` shows where; `tithe select` leaves out bad rows, and duplicates if asked to",
        )


def demand_looked_for(settings: CheckSettings) -> None:
    """Refuse a limit on something that is not looked for.

    Raises:
        SettingsError: there is one.
    """
    s = settings
    absent = {
        "near_duplicates": (s.near_duplicates == 0, "`--near-duplicates 0` looks for none", "`--near-duplicates 0.8`"),
        "truncated": (
            s.max_length is None and s.model is None,
            "no length is given",
            "`--max-length 2048`, with `--model` in tokens",
        ),
        "contaminated": (not s.contamination, "no evaluation file is given", "`--contamination FILE`"),
    }
    for name, (missing, why, hint) in absent.items():
        if name in s.limits and missing:
            raise SettingsError(f"`--max-{name.replace('_', '-')}` is given, and {why}", hint=hint)
    if s.baseline is None and "tolerance" in s.model_fields_set:
        raise SettingsError("`--tolerance` is given, and no baseline", hint="`--baseline FILE`")


def open_near(settings: CheckSettings) -> tuple[NearDuplicates | None, str | None]:
    """Return the index of near-duplicates, or None and why they are not looked for.

    Raises:
        MissingExtraError: they are asked for, and the extra is not installed.
    """
    if settings.near_duplicates == 0:
        return None, "`--near-duplicates 0`"
    try:
        return NearDuplicates(settings.near_duplicates), None
    except MissingExtraError as error:
        if "near_duplicates" in settings.model_fields_set or settings.max_near_duplicates is not None:
            raise
        return None, f"{error}: {error.hint}"


def search_of(settings: CheckSettings, source: DataSource) -> ItemSearch | None:
    """Return the search for evaluation items; None without evaluation files."""
    against = [Path(name).expanduser() for name in settings.contamination]
    return ItemSearch.of(source.dataset, against, NGRAM) if against else None


@dataclass
class Reading:
    """All that is counted in the first reading of a data set, and found in the next ones."""

    dataset: Dataset
    contents: Contents
    repeats: DuplicateGroups
    cutting: LengthCheck | None
    search: ItemSearch | None
    counts: RecordCounts = field(default_factory=lambda: RecordCounts(deed="learnt"))
    bad: BadPlaces = field(default_factory=BadPlaces)
    noted: int = 0
    _last: int = -1

    def read(self, reporter: Reporter) -> None:
        """Read the data set, twice more if it has duplicates."""
        if self.search is not None:
            self.search.counts = self.counts
        for batch in windows(self.counts.counting(self.dataset), BATCH):
            examples = [item for item in batch if isinstance(item, Example)]
            for item in batch:
                if isinstance(item, BadRow):
                    self.bad.add(item)
            for one in examples:
                self.contents.add(one)
                self.repeats.add(one)
                self.noted += bool(one.notes) and one.row != self._last
                self._last = one.row
            if self.cutting is not None:
                self.cutting.add(examples)
            if self.search is not None:
                self.search.look(examples)
            reporter.progress(len(batch), 0)
        self.repeats.read_again(self.examples(), self.examples())

    def examples(self) -> Iterator[Example]:
        return (item for item in self.dataset if isinstance(item, Example))

    def rates(self) -> dict[str, Rate]:
        """Return the rates of everything that was looked for."""
        records, examples = self.counts.records, self.counts.examples
        found = {
            "bad": Rate(self.bad.records, records),
            "empty": Rate(self.bad.empty, records),
            "duplicates": Rate(self.counts.duplicates, examples),
        }
        if self.repeats.near is not None:
            found["near_duplicates"] = Rate(len(self.repeats.twins), examples)
        if self.cutting is not None:
            found["truncated"] = Rate(self.cutting.truncated, examples)
        if self.search is not None:
            found["contaminated"] = Rate(len(self.search.examples), examples)
        return found | {"noted": Rate(self.noted, records), "other_language": self.contents.other_language}

    def measured_by(self) -> dict[str, Any]:
        """Say how each rate was measured: rates that were measured in another way are not compared."""
        as_read = {"turns": self.dataset.turns}
        found: dict[str, Any] = dict.fromkeys(("bad", "empty", "duplicates", "noted"), as_read)
        found["other_language"] = {"by": self.contents.detector.by}
        if self.repeats.near is not None:
            found["near_duplicates"] = {"threshold": self.repeats.near.threshold}
        if self.cutting is not None:
            found["truncated"] = self.cutting.how()
        if self.search is not None:
            against = self.search.so_far()["against"]
            found["contaminated"] = {"ngram": NGRAM, "files": sorted(one["digest"] for one in against.values())}
        return found

    def record(self) -> dict[str, Any]:
        contents = self.contents.record()
        found: dict[str, Any] = {
            "counts": self.counts.as_dict(),
            "bad_rows": self.bad.as_list(self.counts.bad),
            "duplicates": self.repeats.exact_record(),
        }
        if self.repeats.near is not None:
            found["near_duplicates"] = self.repeats.near_record()
        if self.cutting is not None:
            found["truncation"] = self.cutting.record()
            contents["lengths"] += self.cutting.lengths()
        if self.search is not None:
            found["contamination"] = {
                name: self.search.so_far()[name] for name in ("ngram", "words", "examples_hit", "against")
            }
        return found | contents


def judge(
    record: dict[str, Any], settings: CheckSettings, before: dict[str, Any] | None, rates: dict[str, Rate]
) -> dict[str, Any]:
    """Compare the rates with the limits and the baseline."""
    failures = [said for name, limit in settings.limits.items() if (said := limit.exceeded(name, rates[name]))]
    found: dict[str, Any] = {"limits": {name: str(limit) for name, limit in settings.limits.items()}}
    if before is not None:
        tolerance = parse_share(settings.tolerance) or 0.0
        compared = compare(before, record)
        failures += [said for one in compared if (said := one.grown(tolerance))]
        found["baseline"] = {
            "source": before["dataset"].get("source"),
            "tolerance": tolerance,
            "rates": {one.name: one.as_dict() for one in compared},
        }
    return found | {"failures": failures}
