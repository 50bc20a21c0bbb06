"""Scores and ranks beside records: of every dropped record, and of the kept ones if asked for."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.records import FloatArray
from tithe.run.table import ScoreTable

SCORE, RANK = "tithe_score_", "tithe_rank_"


class RecordScores:
    """Columns with the scores and ranks of records: `tithe_score_ifd`, `tithe_rank_ifd`, ... for every scorer.

    Rank 1 is the highest score; equal scores share a rank, which is one more than the number of higher scores. A record
    without a score has null for both.

    Args:
        table: the score table of the whole data set.
        several: whether a record may hold several examples; its columns are lists then, one entry an example.
    """

    def __init__(self, table: ScoreTable, several: bool) -> None:
        self.table, self.several = table, several
        self.rows = np.asarray(table.values("row"), dtype=np.int64)  # (rows of the table,), in order

    @cached_property
    def turns(self) -> list[int | None]:
        """(rows of the table,) turn of each example; None for a bad row."""
        return self.table.values("turn")

    @cached_property
    def columns(self) -> dict[str, tuple[FloatArray, npt.NDArray[np.int64]]]:
        """Scorer -> (rows of the table,) scores, and ranks, 0 for no score."""
        found = {name: self.table.floats(name) for name in self.table.scorers}
        return {name: (values, ranks(values)) for name, values in found.items()}

    def __call__(self, row: int, turns: Collection[int] | None = None, *, single: bool = False) -> dict[str, Any]:
        """Return the columns of one record.

        Args:
            row: of the input.
            turns: responses of the record; None for all.
            single: whether what is written is one example, whatever the record holds.
        """
        first, end = np.searchsorted(self.rows, [row, row + 1]).tolist()
        places = [i for i in range(first, end) if turns is None or self.turns[i] in turns]
        out: dict[str, Any] = {}
        for name, (values, rank) in self.columns.items():
            scores = [None if np.isnan(values[i]) else float(values[i]) for i in places]
            numbers = [int(rank[i]) or None for i in places]
            one = single or not self.several
            out[SCORE + name] = (scores[-1] if scores else None) if one else scores
            out[RANK + name] = (numbers[-1] if numbers else None) if one else numbers
        return out


def ranks(values: FloatArray) -> npt.NDArray[np.int64]:
    """Return (values,) 1 + the number of higher scores; 0 where there is no score."""
    there = ~np.isnan(values)
    ordered = np.sort(-values[there])
    out = np.zeros(len(values), dtype=np.int64)
    out[there] = 1 + np.searchsorted(ordered, -values[there], side="left")
    return out
