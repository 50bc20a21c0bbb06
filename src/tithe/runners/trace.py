"""A trace of when the model read and when it waited, in a few hundred lines however long the run is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields

MOST = 256  # spans; beyond that, neighbours are merged in pairs


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive windows that the model read. Times are seconds since the run's first plan.

    Args:
        windows: number of windows.
        examples: records in them, bad rows included.
        tokens: tokens that the model read.
        planned: when the first window was planned.
        began: when the model began to read the first.
        ended: when it finished the last.
        waited: seconds that the model waited for these windows to be planned, without the wait for a run's first.
    """

    windows: int
    examples: int
    tokens: int
    planned: float
    began: float
    ended: float
    waited: float

    def __add__(self, later: Span) -> Span:
        """Merge with the next span."""
        return Span(
            self.windows + later.windows,
            self.examples + later.examples,
            self.tokens + later.tokens,
            self.planned,
            self.began,
            later.ended,
            self.waited + later.waited,
        )


@dataclass
class Trace:
    """Spans in reading order; the longer the run, the more windows per span.

    Args:
        most: maximal number of spans.
    """

    most: int = MOST
    spans: list[Span] = field(default_factory=list, init=False)
    start: float = field(default=0.0, init=False)  # of the first plan, Unix time
    worst: float = field(default=0.0, init=False)  # longest wait for a window, seconds
    _each: int = field(default=1, init=False)  # windows of a full span

    def add(self, span: Span) -> None:
        """Add a window."""
        self.worst = max(self.worst, span.waited)
        if self.spans and self.spans[-1].windows < self._each:
            self.spans[-1] += span
            return
        self.spans.append(span)
        if len(self.spans) > self.most:
            pairs = zip(self.spans[::2], [*self.spans[1::2], None], strict=False)
            self.spans = [a if b is None else a + b for a, b in pairs]
            self._each *= 2

    def as_dict(self) -> dict[str, float | Sequence[float]]:
        """Return `start` and one list per field of the spans, for the run record."""
        rows = [astuple(span) for span in self.spans]
        names = [one.name for one in fields(Span)]
        return {"start": round(self.start, 3)} | {
            name: [round(row[i], 3) for row in rows] for i, name in enumerate(names)
        }


@dataclass
class Work:
    """Totals of what a run has done so far, for the progress bar and the run record.

    Args:
        passes: forward passes computed in this run.
        reused: passes whose answers were in the store.
        tokens: tokens that the model read in this run.
        failed: passes that ran out of memory even in a batch of one.
        seconds: time spent reading, without loading the model.
        waited: seconds that the model waited for a window to be planned, without the unavoidable wait for the first.
        planned: CPU seconds that a thread spent planning and tokenising the windows that were read.
    """

    passes: int = 0
    reused: int = 0
    tokens: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    planned: float = 0.0
