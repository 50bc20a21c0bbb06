"""When the model read and when it waited, over the length of a run: a few hundred lines at most, however long it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields

MOST = 256  # lines; where there would be more, neighbours are joined


@dataclass(frozen=True, slots=True)
class Span:
    """Some windows next to each other that the model read. Seconds count from the run's first plan.

    Args:
        windows: how many.
        examples: records in them, bad rows included.
        tokens: that the model read.
        planned: when the first was ready to be read.
        began: when reading the first began.
        ended: when reading the last ended.
        waited: seconds in which there was nothing to read, as these windows were not yet planned; those before a run's
            first window are not counted.
    """

    windows: int
    examples: int
    tokens: int
    planned: float
    began: float
    ended: float
    waited: float

    def __add__(self, later: Span) -> Span:
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
    """Spans in the order of reading; the longer the run, the more windows each has.

    Args:
        most: spans that are held.
    """

    most: int = MOST
    spans: list[Span] = field(default_factory=list, init=False)
    start: float = field(default=0.0, init=False)  # of the first plan, Unix time
    worst: float = field(default=0.0, init=False)  # seconds that a single window was waited for
    _each: int = field(default=1, init=False)  # windows of a full span

    def add(self, span: Span) -> None:
        """Take a window."""
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
        """Return `start`, and a list for each field of the spans, for the run record."""
        rows = [astuple(span) for span in self.spans]
        names = [one.name for one in fields(Span)]
        return {"start": round(self.start, 3)} | {
            name: [round(row[i], 3) for row in rows] for i, name in enumerate(names)
        }


@dataclass
class Work:
    """What was done so far, for the progress bar and the run record.

    Args:
        passes: forward passes computed now.
        reused: passes whose answers were in the store.
        tokens: tokens the model read now.
        failed: passes that ran out of memory alone.
        seconds: spent in reading, without loading the model.
        waited: seconds in which there was nothing to read, as the next window was not yet tokenised; the first window,
            for which everybody has to wait, is left out.
        planned: processor seconds for which a thread planned and tokenised what has been read.
    """

    passes: int = 0
    reused: int = 0
    tokens: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    planned: float = 0.0
