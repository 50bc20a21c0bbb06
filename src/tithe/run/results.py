"""Results of a run: plain objects that print well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from tithe.data.dataset import Dataset
from tithe.data.input_check import InputCheck
from tithe.data.writers import DroppedRecords, OutShape, Reason
from tithe.errors import SettingsError, brief, did_you_mean
from tithe.extras import install_hint
from tithe.records import Scores, Selection
from tithe.report.notebook import histogram, html, quantile_rows
from tithe.run.folder import check_places
from tithe.run.objects import ChosenRecords, Part, load_package
from tithe.run.record_scores import RecordScores
from tithe.run.score_files import check_scores_file, write_scores
from tithe.run.table import ScoreTable
from tithe.stages import Stage

if TYPE_CHECKING:
    import pyarrow as pa


# Keys of a run record that a stage's record leaves out: always, and if the stage did not score.
OF_THE_RUN = ("settings", "versions", "dataset", "outcome")
OF_SCORING = ("scorers", "template", "model", "counts", "work", "trace", "engine")
MOST_REASONS = 10  # shown


@dataclass(frozen=True, repr=False)
class PlanResult:
    """Counts of what a run would read; `record` has all numbers."""

    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"<PlanResult: {self}>"

    @property
    def template(self) -> str:
        """Name of the template in use."""
        return str(self.record["template"]["template"])

    @property
    def example(self) -> dict[str, Any]:
        """The first example as the model reads it: `prompt` and `response`, or a `problem`."""
        found: dict[str, Any] = self.record["example"]
        return found

    @property
    def seconds(self) -> float | None:
        """About how long the run takes here; None if nothing was measured; `record["time"]` says why."""
        found: float | None = self.record["time"].get("seconds")
        return found

    def _repr_html_(self) -> str:
        counts = self.record["counts"]
        passes = [(f"forward passes, {kind}", f"{n:,}") for kind, n in counts["passes"].items()]
        rows = [("examples", f"{counts['examples']:,}"), *passes, ("tokens", f"{counts['forward_tokens']:,}")]
        return html("What a run would read", [("", "number"), *rows])

    def __str__(self) -> str:
        counts = self.record["counts"]
        passes = ", ".join(f"{n:,} {kind}" for kind, n in counts["passes"].items()) or "none"
        return f"{counts['examples']:,} examples, forward passes: {passes}, {counts['forward_tokens']:,} tokens" + (
            "" if self.seconds is None else f", about {duration(self.seconds)}"
        )


@dataclass(frozen=True, repr=False)
class ScoreResult:
    """Scores of every example.

    Args:
        dataset: the scored data set.
        record: the run record, as in `run.json`.
        folder: the run folder, or None.
        score_table: the table with reasons per scorer, from which `scores` are made.
        input_check: notices if the data set has changed since it was scored.
        learned: tables that scorers made of the whole data set, by name, such as `neighbours`.
        vectors: (ids, encoder) -> vectors of the prompts; works while the run folder is open.
    """

    dataset: Dataset
    record: dict[str, Any]
    folder: Path | None
    score_table: ScoreTable = field(repr=False)
    input_check: InputCheck = field(repr=False)
    learned: Mapping[str, pa.Table] = field(default_factory=dict, repr=False)
    vectors: Callable[[Sequence[str], str], npt.NDArray[np.float32]] | None = field(default=None, repr=False)

    @cached_property
    def table(self) -> pa.Table:
        """The score table for Arrow, made on first use.

        Columns: `id, row, turn, <scorers>, nll_given, nll_alone, nll_shown, response_tokens, prompt_tokens, truncated,
        shot_tokens_cut, problem`.
        """
        return self.score_table.arrow()

    def scores(self, name: str | None = None) -> Scores:
        """Return one scorer's scores, by default the first one's.

        Raises:
            SettingsError: there are no scores of that name.
        """
        name = name or self.score_table.scorers[0]
        if name not in self.score_table.scorers:
            raise SettingsError(f"no scores of `{name}`", hint=did_you_mean(name, self.score_table.scorers))
        return self.score_table.scores(name)

    def to_pandas(self) -> Any:
        """Return the score table as a pandas DataFrame; its `row` counts the records of the data set from 0."""
        load_package("pandas")
        return self.table.to_pandas()

    def to_polars(self) -> Any:
        """Return the score table as a polars DataFrame."""
        return load_package("polars").from_arrow(self.table)

    def to_dataset(self) -> Any:
        """Return the score table as a `datasets.Dataset`, in memory."""
        return load_package("datasets", install_hint("hub")).Dataset(self.table)

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the score table as Parquet, CSV or JSON lines, by the suffix.

        Raises:
            TitheError: it cannot be written there.
        """
        check_scores_file(Path(path))
        check_places(Path(path), overwrite, self.dataset.source, self.folder, scores=True)
        write_scores(Path(path), self.score_table.parts())

    def _repr_html_(self) -> str:
        columns = {name: self.score_table.floats(name) for name in self.score_table.scorers}
        without = {name: self.score_table.without_score(name) for name in columns}
        drawings = "".join(histogram(name, values) for name, values in columns.items())
        return html(repr(self)[1:-1], quantile_rows(columns, without), drawings=drawings)

    def __len__(self) -> int:
        return len(self.score_table)

    def __repr__(self) -> str:
        return f"<ScoreResult: {', '.join(self.score_table.scorers)} of {len(self):,} rows of {self.dataset.source}>"

    def __str__(self) -> str:
        lines = [f"{self.record['counts']['examples']:,} examples of {self.dataset.source}"]
        for name in self.score_table.scorers:
            values, without = self.score_table.floats(name), self.score_table.without_score(name)
            lines.append(f"{name}: {quantiles(values)}, {without:,} without a score")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class SelectResult:
    """A selection from a scored data set.

    Args:
        scored: all scores.
        selection: the kept and the dropped examples.
        scores: the scores that ranked them.
        record: the run record, as in `run.json`.
        note: a note on the budget, if it could not be met exactly.
    """

    scored: ScoreResult
    selection: Selection
    scores: Scores
    record: dict[str, Any]
    note: str | None = None

    @property
    def kept(self) -> list[str]:
        """Ids of the kept examples, in input order."""
        return list(self.selection.kept)

    @property
    def dropped(self) -> dict[str, str]:
        """Id -> reason, for the dropped examples."""
        return dict(self.selection.dropped)

    def records(self, part: Part = "kept") -> Iterator[dict[str, Any]]:
        """Yield the kept records, unchanged from the input, or the dropped ones with their reason in `tithe_reason`."""
        return iter(self.part(part))

    def to_list(self, part: Part = "kept") -> list[dict[str, Any]]:
        """Return the kept records, or the dropped ones with their reasons."""
        return list(self.part(part))

    def to_dataset(self, part: Part = "kept") -> Any:
        """Return the kept records, or the dropped ones with their reasons, as a `datasets.Dataset`.

        Raises:
            OutputError: the records do not fit the columns of a table.
            MissingExtraError: the package is not installed.
        """
        return self.part(part).to_dataset()

    def to_pandas(self, part: Part = "kept") -> Any:
        """Return the kept records, or the dropped ones with their reasons, as a pandas DataFrame; see `to_dataset`."""
        return self.part(part).to_pandas()

    def to_polars(self, part: Part = "kept") -> Any:
        """Return the kept records, or the dropped ones with their reasons, as a polars DataFrame; see `to_dataset`."""
        return self.part(part).to_polars()

    def to_arrow(self, part: Part = "kept") -> pa.Table:
        """Return the kept records, or the dropped ones with their reasons, as an Arrow table; see `to_dataset`."""
        return self.part(part).to_arrow()

    def part(self, part: Part) -> ChosenRecords:
        """Return the kept or the dropped records.

        Raises:
            SettingsError: an unknown part.
            DataError: the data has changed since it was scored.
        """
        if part not in get_args(Part):
            raise SettingsError(f"a selection has no part `{part}`", hint=did_you_mean(part, get_args(Part)))
        self.scored.input_check.check()  # row numbers mean nothing in changed data
        if part == "kept":
            return ChosenRecords(self.scored.dataset, self.rows())
        reasons = self.reasons_by_row()
        return ChosenRecords(self.scored.dataset, reasons, reasons)

    def reasons_by_row(self) -> dict[int, Reason]:
        """Return row -> reason for every record of which nothing is kept; several turns give a list of reasons."""
        table, kept = self.scored.score_table, self.rows()
        reasons: dict[int, Reason] = {}
        for id_, row, problem in zip(table.values("id"), table.values("row"), table.values("problem"), strict=True):
            if row in kept:
                continue
            why = self.selection.dropped[id_] if id_ is not None else problem
            before = reasons.get(row)
            reasons[row] = why if before is None else [*([before] if isinstance(before, str) else before), why]
        return reasons

    @cached_property
    def scores_beside(self) -> RecordScores:
        """Every scorer's score and rank of each record."""
        return RecordScores(self.scored.score_table, several=self.scored.dataset.turns == "all")

    def rows(self) -> dict[int, set[int]]:
        """Return row -> kept turns."""
        # With `--turns all` a record has several examples, and may be kept in part.
        chosen, rows = set(self.selection.kept), dict[int, set[int]]()
        columns = [self.scored.score_table.values(name) for name in ("id", "row", "turn")]
        for id_, row, turn in zip(*columns, strict=True):
            if id_ in chosen:
                rows.setdefault(row, set()).add(turn)
        return rows

    def write(
        self,
        path: str | Path,
        *,
        shape: OutShape = "same",
        overwrite: bool = False,
        with_scores: bool = False,
        dropped: DroppedRecords | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the kept records as a file.

        Args:
            path: of the file; its suffix decides the file format.
            shape: shape of the records; `same` as the input.
            overwrite: replace an existing file.
            with_scores: add every scorer's score and rank to the records, as `tithe_score_...` and `tithe_rank_...`.
            dropped: writes the other records in the same pass over the input.
            then: called once all is written, before the file gets its name.

        Raises:
            OutputError: the file cannot be written, or cannot hold these records.
        """
        from tithe.data.export import write_records

        check_places(Path(path), overwrite, self.scored.dataset.source, self.scored.folder)
        self.scored.input_check.check()
        write_records(
            self.scored.dataset,
            self.rows(),
            path,
            shape=shape,
            overwrite=overwrite,
            dropped=dropped,
            then=then,
            beside=self.scores_beside if with_scores else None,
        )

    def _repr_html_(self) -> str:
        lines = str(self).splitlines()
        rows = [("dropped", "reason"), *((f"{n:,}", brief(why)) for why, n in self.selection.reasons().items())]
        more = rows[MOST_REASONS + 1 :]
        notes = [*([f"and {len(more):,} other reasons"] if more else []), *([self.note] if self.note else [])]
        kept = set(self.selection.kept)
        chosen = np.array([id_ in kept for id_ in self.scores.ids], bool)
        drawings = histogram(self.scores.by, np.asarray(self.scores.values, float), chosen)
        return html(lines[0], rows[: MOST_REASONS + 1], notes, drawings)

    def __len__(self) -> int:
        return len(self.selection.kept)

    def __repr__(self) -> str:
        return f"<SelectResult: {len(self):,} of {len(self.scores):,} kept by {self.selection.by} on {self.scores.by}>"

    def __str__(self) -> str:
        lines = [f"kept {len(self):,} of {len(self.scores):,} by {self.selection.by} on {self.scores.by}"]
        reasons = list(self.selection.reasons().items())
        lines += [f"dropped {n:,}: {brief(reason)}" for reason, n in reasons[:MOST_REASONS]]
        if rest := reasons[MOST_REASONS:]:
            lines.append(f"dropped {sum(n for _, n in rest):,}: {len(rest):,} other reasons")
        return "\n".join(lines + ([self.note] if self.note else []))


@dataclass(frozen=True)
class StageResult:
    """Result of one finished stage.

    Args:
        stage: the parsed stage.
        column: name of its scores in the final table; None if it used an earlier stage's.
        chosen: the selection from the examples that entered the stage.
        total: number of examples in the whole input.
        columns: the columns of its own table that are in the final one -> their names there.
    """

    stage: Stage
    column: str | None
    chosen: SelectResult
    total: int
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The stage's entry in `run.json`."""
        came, kept = len(self.chosen.scores), len(self.chosen)
        own = {"stage": self.stage.number, "text": self.stage.text, "column": self.column}
        own |= {"in": came, "kept": kept, "of_stage": kept / came, "of_all": kept / self.total}
        own |= {"note": self.chosen.note}
        rest = {key: value for key, value in self.chosen.record.items() if key not in OF_THE_RUN}
        return own | {key: value for key, value in rest.items() if key not in OF_SCORING or self.column}

    @property
    def sentence(self) -> str:
        """One line for the terminal: how many came in, were kept, and were dropped why."""
        came, kept = len(self.chosen.scores), len(self.chosen)
        dropped = [f"{n:,} {reason}" for reason, n in self.chosen.record["selection"]["dropped"].items()]
        shares = f"{share(kept, came)} of the stage, {share(kept, self.total)} of all"
        return f"{came:,} in, {kept:,} kept ({shares})" + (f"; dropped: {', '.join(dropped)}" if dropped else "")


@dataclass(frozen=True, repr=False)
class PipelineResult(SelectResult):
    """A selection made in stages; the fields of `SelectResult` describe the whole input."""

    stages: tuple[StageResult, ...] = ()

    def __str__(self) -> str:
        lines = [f"kept {len(self):,} of {len(self.scores):,} by {self.selection.by}"]
        lines += [f"{done.stage.label}: {done.sentence}" for done in self.stages]
        return "\n".join(lines + ([self.note] if self.note else []))


def duration(seconds: float) -> str:
    """Format seconds in the unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def share(part: int, whole: int) -> str:
    """Format a part of a whole as a percentage."""
    return f"{100 * part / whole:.3g}%" if whole else "-"


def quantiles(values: np.ndarray[Any, Any]) -> str:
    """Format minimum, quartiles and maximum of the numbers that are not NaN."""
    there = values[~np.isnan(values)]
    if not len(there):
        return "no numbers"
    low, q1, middle, q3, high = np.quantile(there, [0, 0.25, 0.5, 0.75, 1])
    return f"{low:.4g} | {q1:.4g} {middle:.4g} {q3:.4g} | {high:.4g}"
