"""The interface by which a run reports progress and messages; this implementation drops them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tithe.data.counts import note_sentences, remark_sentences
from tithe.data.dataset import Dataset


class Reporter:
    """Receive progress and messages of a run, and drop them."""

    trouble: str | None = None  # why messages no longer reach anybody, such as a closed stderr

    def say(self, sentence: str) -> None:
        """Show a line to the user."""

    def phase(self, name: str) -> None:
        """Begin a phase with this name, which ends with `done`; its size may follow with `expect`."""

    def expect(self, examples: int | None, *, about: bool = False) -> None:
        """Set the number of examples of the phase, exact or `about`; None if it is not known."""

    def progress(self, examples: float, tokens: int) -> None:
        """Add examples that are done; `tokens` is the total that the model has read so far."""

    def done(self) -> None:
        """End the phase."""


def say_notes(reporter: Reporter, dataset: Dataset, counts: Mapping[str, Any], *, several: bool = False) -> None:
    """Report notes on a data set: on its files, its records, and their rendering.

    Args:
        reporter: receives the notes.
        dataset: the data set.
        counts: `RecordCounts.as_dict()`, with `RemarkCounts.as_dict()` if records were rendered.
        several: whether the command reads several data sets, so that each sentence must name this one.
    """
    source = f"`{dataset.source}`" if several else None
    for sentence in (*dataset.notes, *note_sentences(counts, source)):
        reporter.say(sentence)
    where = "" if source is None else f"{source}: "
    for sentence in remark_sentences(counts):
        reporter.say(f"{where}{sentence}")
