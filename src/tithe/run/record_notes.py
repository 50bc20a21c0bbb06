"""What a command says of the records that it has read, whichever command it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tithe.data.files import Dataset
from tithe.data.record_counts import note_sentences
from tithe.data.remarks import remark_sentences
from tithe.run.talk import Talk


def say_notes(talk: Talk, dataset: Dataset, counts: Mapping[str, Any], *, several: bool = False) -> None:
    """Say what is noted of a data set: of its files, of its records, and of their rendering where they were rendered.

    Args:
        talk: who listens.
        dataset: it.
        counts: `RecordCounts.as_dict()`, and `RemarkCounts.as_dict()` where there are such.
        several: whether the command reads several data sets, so that a sentence has to name this one.
    """
    source = f"`{dataset.source}`" if several else None
    for sentence in (*dataset.notes, *note_sentences(counts, source)):
        talk.say(sentence)
    where = "" if source is None else f"{source}: "
    for sentence in remark_sentences(counts):
        talk.say(f"{where}{sentence}")
