"""Weights of examples for trainers that read one: from the scores of a run, above 0 and 1 on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tithe.data.ids import strip_occurrence
from tithe.errors import SettingsError, StoreError, did_you_mean
from tithe.foreign import foreign
from tithe.records import FloatArray
from tithe.run.folder import SCORES
from tithe.run.table import COUNTS, FIXED
from tithe.selectors.mean_rank import MeanRank, is_mean_rank

AGAIN = "run the same command again: stored answers are used"


@dataclass(frozen=True)
class ExampleWeights:
    """How examples are weighted.

    `rank(NAME)` gives twice the share of exported examples with a lower score, plus half of those with an equal one:
    from above 0 to below 2, and a mean of ranks works alike. `NAME` gives the score divided by the mean score. Both
    rise with the score, are equal for equal scores, and are 1 on average over the exported examples.

    Args:
        by: `NAME` or `rank(NAME)`, of a score in the run.
        scores: score -> content id -> value.
    """

    by: str
    scores: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, by: str, folder: Path) -> ExampleWeights:
        """Read the scores that the weights are made of.

        Raises:
            TitheError: there is no such run or score.
        """
        import pyarrow.parquet as pq

        path = folder / SCORES
        if not path.is_file():
            raise StoreError(f"no scores for the weights: there is no `{path}`", hint="`--run` names the run folder")
        with foreign(StoreError, f"`{path}` cannot be read", AGAIN):
            table = pq.read_table(path)
        known = [name for name in table.column_names if name not in (*FIXED, *COUNTS, "dropped")]
        ids = table.column("id").to_pylist()
        found: dict[str, dict[str, float]] = {}
        for name in [by] if by in known else names_of(by):
            if name not in known or not isinstance(next(iter(table.column(name).to_pylist()), 0.0), float | int | None):
                raise SettingsError(f"`{folder}` has no score `{name}` for weights", hint=did_you_mean(name, known))
            values = table.column(name).to_pylist()
            # Equal contents have equal ids but for a number at the end, which depends on the file.
            own = found.setdefault(name, {})
            for id_, value in zip(ids, values, strict=True):
                if id_ is not None and value is not None:
                    own.setdefault(strip_occurrence(id_), value)
        return cls(by, found)

    def of(self, ids: Sequence[str]) -> FloatArray:
        """Return the weight of each example.

        Args:
            ids: of all examples that are exported.

        Raises:
            SettingsError: an example has no score, or scores that are not above 0 would be weights.
        """
        bare = [strip_occurrence(id_) for id_ in ids]
        columns = {name: np.array([own.get(id_, np.nan) for id_ in bare]) for name, own in self.scores.items()}
        for name, values in columns.items():
            if lacking := int(np.isnan(values).sum()):
                raise SettingsError(
                    f"{lacking:,} of {len(ids):,} examples have no `{name}` in the run, so they have no weight",
                    hint="export what the run kept, or name another run with `--run`",
                )
        if self.by not in columns:
            return 2 * MeanRank.parse(self.by).values(columns)
        values = columns[self.by]
        if (values <= 0).any() or not np.isfinite(values).all():
            raise SettingsError(
                f"`{self.by}` is not above 0 for {int((~(values > 0)).sum()):,} examples, and so is no weight",
                hint=f'`--weights "rank({self.by})"` weighs by rank',
            )
        return np.asarray(values / values.mean())


def names_of(by: str) -> list[str]:
    """Return the scores that a weight is made of."""
    return MeanRank.parse(by).names if is_mean_rank(by) else [by]
