"""The score table: one row per example and per bad row, in input order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.data.ids import content_hash
from tithe.planner import Slot, shot_tokens_cut
from tithe.records import BadRow, Example, FloatArray, Message, Nll, Pass, Problem, Scores
from tithe.run.columns import Column, Numbers, Reasons, new_column
from tithe.run.residual import residuals
from tithe.runners.local import Scored

if TYPE_CHECKING:
    import pyarrow as pa

PART = 1 << 16  # rows of the table that are made into Arrow's arrays at once
FIXED = ("id", "row", "turn")
NLLS = ("nll_given", "nll_alone", "nll_shown")
TOKENS = ("response_tokens", "prompt_tokens", "truncated", "shot_tokens_cut")
COUNTS = (*NLLS, *TOKENS, "problem")
KINDS: Mapping[str, Any] = {
    "id": "string",
    "row": "int64",
    "turn": "int32",
    "problem": "reason",
    **dict.fromkeys(TOKENS, "int32"),
}  # all others hold scores


def prompt_key(example: Example) -> str:
    """The same for all examples with the same prompt."""
    return f"{content_hash(example.prompt, Message('assistant', ''), example.tools, example.input):016x}"


COMPUTED: Mapping[str, Callable[[Example], Any]] = {"prompt": prompt_key}  # columns that a selector may read


class Table:
    """Grows by windows.

    Args:
        scorers: column names of the scores.
        more: columns of what scorers say besides, and of scores that are made of others when all are there.
        extra: columns of the input, or of `COMPUTED`, to carry along in memory, for filters and strata; not written.
    """

    def __init__(self, scorers: Sequence[str], extra: Iterable[str] = (), more: Iterable[str] = ()) -> None:
        self.scorers, self.more = list(scorers), list(more)
        self.extra: dict[str, list[Any]] = {name: [] for name in extra}
        names = (*FIXED, *self.scorers, *self.more, *COUNTS)
        self.columns: dict[str, Column] = {name: new_column(KINDS.get(name, "float64")) for name in names}
        self.reasons: dict[str, Reasons] = {name: Reasons() for name in self.scorers}

    def add(self, scored: Scored) -> None:
        """Append a window."""
        i = 0
        for item in scored.window.items:
            if isinstance(item, BadRow):
                self.append({"row": item.row, "problem": item.reason}, dict.fromkeys(self.scorers, item.reason), {})
                continue
            row = {"id": item.id, "row": item.row, "turn": item.turn}
            row |= {**facts(scored, i), **scored.more[i]}
            reasons: dict[str, str | None] = {}
            for name, value in scored.scores[i].items():
                failed = isinstance(value, Problem)
                row[name] = None if failed else float(value)  # type: ignore[arg-type]
                reasons[name] = value.reason if isinstance(value, Problem) else None
            row["problem"] = joined(reasons)
            own = {name: COMPUTED[name](item) for name in self.extra if name in COMPUTED}
            self.append(row, reasons, {**item.columns, **own})
            i += 1

    def append(self, row: Mapping[str, Any], reasons: Mapping[str, str | None], extra: Mapping[str, Any]) -> None:
        for name, values in self.columns.items():
            values.append(row.get(name))
        for name, said in self.reasons.items():
            said.append(reasons.get(name))
        for name, others in self.extra.items():
            others.append(extra.get(name))

    def residualise(self, name: str, into: str) -> None:
        """Make a score of another one: what is left of it when the response's length is taken away."""
        left = residuals(self.floats(name), np.nan_to_num(self.floats("response_tokens")))
        self.columns[into] = Numbers("float64", (None if math.isnan(v) else v for v in left.tolist()))
        self.reasons[into] = self.reasons[name]
        self.more.remove(into)
        self.scorers.append(into)

    def floats(self, name: str) -> FloatArray:
        """(rows,) a column of numbers, NaN where there is none."""
        found = self.columns[name]
        assert isinstance(found, Numbers), name
        return found.floats()

    def there(self) -> npt.NDArray[np.intp]:
        """The rows that are examples; bad rows are none."""
        return np.flatnonzero(self.columns["id"].mask.array())

    def without_score(self, name: str) -> int:
        """How many examples have no score of this name."""
        return sum(self.columns["id"].mask.has(i) for i in self.reasons[name].said)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def arrow(self, rows: range | None = None) -> pa.Table:
        """As written to `scores.parquet`, all rows or these, of which the first one's number is a multiple of eight."""
        import pyarrow as pa

        return pa.table({name: values.arrow(rows) for name, values in self.columns.items()})

    def parts(self) -> Iterator[pa.Table]:
        """The same, some rows at a time: the whole would stand in memory a second time."""
        for start in range(0, max(1, len(self)), PART):
            yield self.arrow(range(start, min(start + PART, len(self))))

    def scores(self, name: str) -> Scores:
        """One scorer's scores over the examples (bad rows have no id and are not among them)."""
        places = self.there()
        values = self.floats(name)[places]
        said = self.reasons[name].said
        at = np.searchsorted(places, list(said))
        problems = {
            i: why for i, (row, why) in zip(at.tolist(), said.items(), strict=True) if self.columns["id"].mask.has(row)
        }
        numbers = (*self.scorers, *self.more, *COUNTS[:-1])
        columns: dict[str, npt.NDArray[Any]] = {column: self.floats(column)[places] for column in numbers}
        columns |= {column: object_array(take(self.extra[column], places)) for column in self.extra}
        return Scores(self.columns["id"].take(places.tolist()), values, problems, columns, by=name)


def take(values: Sequence[Any], places: Iterable[int]) -> list[Any]:
    return [values[i] for i in places]


def object_array(values: Sequence[Any]) -> Any:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def facts(scored: Scored, i: int) -> dict[str, Any]:
    """What is known of an example besides its scores: token counts, truncation, NLLs that were read."""
    out: dict[str, Any] = {}
    window = scored.window
    made, slots = window.given[i], [slot for named in window.slots[i] for slot in named.values()]
    if isinstance(made, Pass):
        out = {"prompt_tokens": made.start, "response_tokens": made.response_tokens}
        out["truncated"] = made.cut_prompt + made.cut_response
        out["shot_tokens_cut"] = shot_tokens_cut(slots, window)
    # Passes over other examples' responses, with this one as their shot, say nothing about this one's response.
    read: dict[str, dict[int, float]] = {}
    for slot in slots:
        if isinstance(slot, Slot) and slot.spec.example.id == window.examples[i].id:
            answer = scored.answers.get((slot.index, slot.readout))
            if isinstance(answer, Nll) and answer.tokens:
                read.setdefault(slot.spec.kind, {})[slot.index] = answer.mean
    return out | {f"nll_{kind}": next(iter(means.values())) for kind, means in read.items() if len(means) == 1}


def joined(reasons: Mapping[str, str | None]) -> str | None:
    """One cell for all scorers' problems."""
    there = {name: why for name, why in reasons.items() if why is not None}
    if not there:
        return None
    if len(set(there.values())) == 1 and len(there) == len(reasons):
        return next(iter(there.values()))
    return "; ".join(f"{name}: {why}" for name, why in there.items())
