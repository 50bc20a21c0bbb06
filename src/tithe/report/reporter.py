"""What a run says while it works; silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tithe.data.counts import note_sentences, remark_sentences
from tithe.data.dataset import Dataset


class Reporter:
    """Listener of a run; this one hears nothing."""

    trouble: str | None = None  # why nobody can hear it any more

    def say(self, sentence: str) -> None:
        """A line for the user."""

    def phase(self, name: str) -> None:
        """Begin what has this name and ends with `done`; how much it is, `expect` may say."""

    def expect(self, examples: int | None, *, about: bool = False) -> None:
        """Say how many examples are to come, or `about` how many; None where that is not known."""

    def progress(self, examples: float, tokens: int) -> None:
        """So many more examples are done; `tokens` read by the model so far."""

    def done(self) -> None:
        """No more progress will come."""


def say_notes(reporter: Reporter, dataset: Dataset, counts: Mapping[str, Any], *, several: bool = False) -> None:
    """Say what is noted of a data set: of its files, of its records, and of their rendering where they were rendered.

    Args:
        reporter: who listens.
        dataset: it.
        counts: `RecordCounts.as_dict()`, and `RemarkCounts.as_dict()` where there are such.
        several: whether the command reads several data sets, so that a sentence has to name this one.
    """
    source = f"`{dataset.source}`" if several else None
    for sentence in (*dataset.notes, *note_sentences(counts, source)):
        reporter.say(sentence)
    where = "" if source is None else f"{source}: "
    for sentence in remark_sentences(counts):
        reporter.say(f"{where}{sentence}")
