"""The score table, one row per example and bad row in input order; and the file of per-token likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tithe.data.ids import content_hash
from tithe.data.outfile import atomic
from tithe.planner import Slot, members
from tithe.records import BadRow, Example, FloatArray, Message, Nll, Pass, Problem, Scores
from tithe.runners.local import ScoredWindow

if TYPE_CHECKING:
    import pyarrow as pa

PART = 1 << 16  # rows written at once, a row group
FIXED = ("id", "row", "turn")
NLLS = ("nll_given", "nll_alone", "nll_shown")
COUNTED = ("response_tokens", "prompt_tokens", "truncated", "shot_tokens_cut")
COUNTS = (*NLLS, *COUNTED, "problem")
KINDS: Mapping[str, str] = {
    "id": "string",
    "row": "int64",
    "turn": "int32",
    "problem": "string",
    **dict.fromkeys(COUNTED, "int32"),
}  # all other columns are float64
KNOTS = 5  # of the spline over length
ENOUGH = 50  # scored examples for a spline; with fewer, a straight line


def prompt_key(example: Example) -> str:
    """Return a hash of the prompt, in hex."""
    return f"{content_hash(example.prompt, Message('assistant', ''), example.tools, example.input):016x}"


COMPUTED: Mapping[str, Callable[[Example], Any]] = {"prompt": prompt_key}  # further columns that a selector may read


class ScoreTable:
    """Score table that grows window by window; each window is one Arrow record batch.

    Args:
        scorers: names of the score columns.
        more: further columns that scorers fill, and residual scores, which are computed at the end.
        extra: columns of the input, or of `COMPUTED`, kept in memory for filters and strata; not written.
        texts: columns that scorers fill with words.
    """

    def __init__(
        self,
        scorers: Sequence[str],
        extra: Iterable[str] = (),
        more: Iterable[str] = (),
        texts: Iterable[str] = (),
    ) -> None:
        import pyarrow as pa

        self.scorers, self.more, self.texts = list(scorers), list(more), list(texts)
        self.extra: dict[str, list[Any]] = {name: [] for name in extra}
        names = (*FIXED, *self.scorers, *self.more, *self.texts, *COUNTS)
        kinds = {**KINDS, **dict.fromkeys(self.texts, "string")}
        self.schema = pa.schema([(name, pa.type_for_alias(kinds.get(name, "float64"))) for name in names])
        self.batches: list[pa.RecordBatch] = []
        self.length = 0
        self.reasons: dict[str, dict[int, str]] = {name: {} for name in self.scorers}  # scorer -> row -> why no score

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any]],
        reasons: Mapping[str, Mapping[int, str]],
        more: Iterable[str] = (),
        texts: Iterable[str] = (),
    ) -> Self:
        """Make a table from finished columns, in the order of `schema`.

        Args:
            columns: name -> values, None for no value.
            reasons: scorer -> row -> why it has no score.
            more: further columns of numbers.
            texts: columns of words.
        """
        import pyarrow as pa

        table = cls([*reasons], more=more, texts=texts)
        table.batches = pa.table(dict(columns), schema=table.schema).to_batches()
        table.length = sum(map(len, table.batches))
        table.reasons = {name: dict(each) for name, each in reasons.items()}
        return table

    def add(self, scored: ScoredWindow) -> None:
        """Append a window."""
        import pyarrow as pa

        items = scored.window.items
        columns: dict[str, list[Any]] = {name: [None] * len(items) for name in self.schema.names}
        example = 0
        for place, item in enumerate(items):
            columns["row"][place], carried = item.row, dict[str, Any]()
            if isinstance(item, BadRow):
                reasons: dict[str, str | None] = dict.fromkeys(self.scorers, item.reason)
                columns["problem"][place] = item.reason
            else:
                found, reasons = example_row(scored, example)
                found["problem"] = join_reasons(reasons)
                for name in found.keys() & columns.keys():  # values without a column are left out
                    columns[name][place] = found[name]
                carried = {**item.columns, **{name: COMPUTED[name](item) for name in self.extra if name in COMPUTED}}
                example += 1
            for name, why in reasons.items():
                if why is not None:
                    self.reasons[name][self.length + place] = why
            for name, values in self.extra.items():
                values.append(carried.get(name))
        self.batches.append(pa.record_batch(columns, schema=self.schema))
        self.length += len(items)

    def residualise(self, name: str, into: str) -> None:
        """Fill the column `into` with the score `name` minus what response length predicts."""
        import pyarrow as pa

        left = residuals(self.floats(name), np.nan_to_num(self.floats("response_tokens")))
        column = pa.array(left, mask=np.isnan(left))
        self.batches = self.arrow().set_column(self.schema.names.index(into), into, column).to_batches()
        self.reasons[into] = self.reasons[name]
        self.more.remove(into)
        self.scorers.append(into)

    def with_score(self, name: str, values: FloatArray, reasons: Mapping[int, str]) -> ScoreTable:
        """Return the table with one more score.

        Args:
            name: of its column.
            values: (rows,) numbers, NaN for no score.
            reasons: row -> why there is none, for every such row.
        """
        import pyarrow as pa

        made = ScoreTable([*self.scorers, name], self.extra, self.more, self.texts)
        place = len(FIXED) + len(self.scorers)
        grown = self.arrow().add_column(place, name, pa.array(values, mask=np.isnan(values)))
        made.schema, made.batches, made.length = grown.schema, grown.to_batches(), len(self)
        made.reasons, made.extra = {**self.reasons, name: dict(reasons)}, self.extra
        return made

    def values(self, name: str) -> list[Any]:
        """Return a column as a list, None for no value."""
        return [value for batch in self.batches for value in batch.column(name).to_pylist()]

    def floats(self, name: str) -> FloatArray:
        """Return a column of numbers as (rows,) float64, NaN for no value."""
        found = [batch.column(name).cast("float64").to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.concatenate(found) if found else np.empty(0)

    def example_rows(self) -> npt.NDArray[np.intp]:
        """Return the indices of the rows that are examples, not bad rows."""
        found = [batch.column("id").is_valid().to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.flatnonzero(np.concatenate(found)) if found else np.empty(0, np.intp)

    def scored(self, name: str) -> int:
        """Return how many examples have a score of this name."""
        return sum(len(batch) - batch.column(name).null_count for batch in self.batches)

    def has_values(self, name: str) -> bool:
        """Return whether any row has a value in this column."""
        return any(batch.column(name).null_count < len(batch) for batch in self.batches)

    def without_score(self, name: str) -> int:
        """Return how many examples have no score of this name."""
        return len(self.reasons[name].keys() & set(self.example_rows().tolist()))

    def __len__(self) -> int:
        return self.length

    def arrow(self) -> pa.Table:
        """Return the table as it is written to `scores.parquet`."""
        import pyarrow as pa

        return pa.Table.from_batches(self.batches, self.schema)

    def parts(self) -> Iterator[pa.Table]:
        """Yield the table in slices; writing it whole would need its memory twice."""
        whole = self.arrow()
        for start in range(0, max(1, len(self)), PART):
            yield whole.slice(start, PART).combine_chunks()

    def take(self, rows: Sequence[int]) -> ScoreTable:
        """Return a new table with these rows, in this order."""
        made, places = (
            ScoreTable(self.scorers, self.extra, self.more, self.texts),
            {row: i for i, row in enumerate(rows)},
        )
        made.schema = self.schema
        made.batches, made.length = self.arrow().take(list(rows)).to_batches(), len(rows)
        made.reasons = {
            name: {places[row]: why for row, why in reasons_of.items() if row in places}
            for name, reasons_of in self.reasons.items()
        }
        made.extra = {name: [values[row] for row in rows] for name, values in self.extra.items()}
        return made

    def scores(self, name: str) -> Scores:
        """Return one scorer's scores of the examples, without bad rows, which have no id."""
        rows = self.example_rows()
        places = {row: i for i, row in enumerate(rows.tolist())}
        problems = {places[row]: why for row, why in sorted(self.reasons[name].items()) if row in places}
        numbers = (*self.scorers, *self.more, *COUNTS[:-1])
        columns: dict[str, npt.NDArray[Any]] = {column: self.floats(column)[rows] for column in numbers}
        texts = {column: self.values(column) for column in self.texts}
        columns |= {
            column: object_array([values[row] for row in rows]) for column, values in (texts | self.extra).items()
        }
        ids = [id_ for id_ in self.values("id") if id_ is not None]
        return Scores(ids, self.floats(name)[rows], problems, columns, by=name)


def object_array(values: Sequence[Any]) -> Any:
    """Return a (values,) object array; `np.array` would turn nested lists into more dimensions."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def example_row(scored: ScoredWindow, i: int) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return an example's row, and per scorer why there is no score, or None."""
    item = scored.window.examples[i]
    row = {"id": item.id, "turn": item.turn, **example_facts(scored, i), **scored.more[i]}
    reasons: dict[str, str | None] = {}
    for name, value in scored.scores[i].items():
        failed = isinstance(value, Problem)
        row[name] = None if failed else float(value)  # type: ignore[arg-type]
        reasons[name] = value.reason if isinstance(value, Problem) else None
    return row, reasons


def example_facts(scored: ScoredWindow, i: int) -> dict[str, Any]:
    """Return an example's columns besides its scores: token counts, truncation, and the NLLs that were read."""
    out: dict[str, Any] = {}
    window = scored.window
    made, slots = window.given[i], [slot for named in window.slots[i] for slot in named.values()]
    if isinstance(made, Pass):
        out = {"prompt_tokens": made.start, "response_tokens": made.response_tokens}
        out["truncated"] = made.cut_prompt + made.cut_response
        out["shot_tokens_cut"] = window.shot_tokens_cut[i]
    # Skip passes over other examples' responses that show this example as a shot: their NLL is not of this response.
    read: dict[str, dict[int, float]] = {}
    for slot in slots:
        if isinstance(slot, Slot) and slot.spec.example.id == window.examples[i].id:
            answer = scored.answers.get((slot.index, slot.readout))
            if isinstance(answer, Nll) and answer.tokens:
                read.setdefault(slot.spec.kind, {})[slot.index] = answer.mean
    return out | {f"nll_{kind}": next(iter(means.values())) for kind, means in read.items() if len(means) == 1}


def join_reasons(reasons: Mapping[str, str | None]) -> str | None:
    """Join the scorers' problems into one cell; a problem that all scorers share stands alone."""
    there = {name: why for name, why in reasons.items() if why is not None}
    if not there:
        return None
    if len(set(there.values())) == 1 and len(there) == len(reasons):
        return next(iter(there.values()))
    return "; ".join(f"{name}: {why}" for name, why in there.items())


def residuals(values: FloatArray, lengths: npt.NDArray[Any]) -> FloatArray:
    """Return the residuals of a least-squares fit of the score on log length.

    The fit is a cubic spline with knots at quantiles, or a straight line for few examples or few different lengths.

    Args:
        values: (examples,) scores, NaN for no score.
        lengths: (examples,) response tokens.

    Returns:
        (examples,) residuals in the score's unit; 0 is the average of responses of that length. NaN stays NaN.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer

    out = np.full(len(values), np.nan)
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        return out
    # (scored examples, 1); a response without tokens counts as one token long
    x = np.log(np.maximum(np.asarray(lengths, dtype=np.float64)[there], 1.0))[:, None]
    # Quantiles that coincide would give the spline empty intervals, so all knots must differ.
    bends = len(there) >= ENOUGH and len(np.unique(np.quantile(x, np.linspace(0, 1, KNOTS)))) == KNOTS
    curve = (
        make_pipeline(SplineTransformer(KNOTS, knots="quantile"), LinearRegression()) if bends else LinearRegression()
    )
    out[there] = values[there] - curve.fit(x, values[there]).predict(x)
    return out


def rank_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Return Spearman's rank correlation over the examples with both values; None if either does not vary."""
    from scipy.stats import spearmanr

    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return None
    return float(spearmanr(a[both], b[both]).statistic)


def token_schema() -> Any:
    """Return the columns of `tokens.parquet`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("pass", pa.string()),
            ("shots", pa.list_(pa.string())),
            ("token_ids", pa.list_(pa.int32())),
            ("nll", pa.list_(pa.float32())),
        ]
    )


class TokenFile:
    """Writer of `tokens.parquet`: one row per response and pass, with `id, pass, shots, token_ids, nll`.

    `token_ids` and `nll` are lists over the scored response tokens; `shots` are the ids of the worked examples.
    """

    def __init__(self, path: Path) -> None:
        self._out = atomic(path, overwrite=True)

    def __enter__(self) -> TokenFile:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(self._out.__enter__(), token_schema(), compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._out.__exit__(kind, error, at)

    def add(self, scored: ScoredWindow) -> None:
        """Append a window."""
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for each in scored.window.slots:
            # Several scorers may ask for a pass, some for another readout that has no values of tokens.
            found: dict[tuple[str, ...], dict[str, Any]] = {}
            for slot in (slot for slots in each for slot in slots.values() if isinstance(slot, Slot)):
                if (row := self.row(scored, slot)) is not None:
                    found[slot.spec.kind, *(one.id for one in members(slot.spec))] = row
            rows += found.values()
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._writer.schema))

    def row(self, scored: ScoredWindow, slot: Slot) -> dict[str, Any] | None:
        """Return the row of one ask, or None if its answer has no per-token values."""
        spec = slot.spec
        answer = scored.answers[slot.index, slot.readout]
        if not isinstance(answer, Nll) or answer.per_token is None:
            return None
        ids = scored.window.passes[slot.index].ids
        return {
            "id": spec.example.id,
            "pass": spec.kind,
            "shots": [shot.id for shot in spec.shots],
            "token_ids": ids[len(ids) - answer.tokens :],  # a first token without context is not scored
            "nll": answer.per_token,
        }
