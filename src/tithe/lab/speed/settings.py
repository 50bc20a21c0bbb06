"""Settings of `tithe bench`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from tithe.config import ScoreSettings
from tithe.typed import Count


class BenchSettings(ScoreSettings):
    """How a run's speed is measured; what is not told of here is as in `score`.

    Args:
        limit: records of the sample, spread evenly over the data set, all of which is counted.
        records: read only so many records of the data set; the sample is spread over them.
        repeats: readings of each choice; at least 3, so that a spread can be told.
        seconds: about how long one reading may take; where the sample takes longer, a smaller one is read.
    """

    limit: Count = 200
    records: Count | None = None
    repeats: int = 3
    seconds: float = 8.0

    @field_validator("limit", mode="before")
    @classmethod
    def some(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a sample has a size")
        return value

    @field_validator("repeats")
    @classmethod
    def at_least_three(cls, value: int) -> int:
        if value < 3:
            raise ValueError("fewer than 3 readings tell no spread")
        return value

    @field_validator("seconds")
    @classmethod
    def above_zero(cls, value: float) -> float:
        if not value > 0:
            raise ValueError("it must be above 0")
        return value

    @property
    def job(self) -> ScoreSettings:
        """The run that is asked about."""
        own = BenchSettings.model_fields.keys() - ScoreSettings.model_fields.keys()
        return ScoreSettings(**self.model_dump(exclude={*own, "limit", "per_token"}), limit=self.records)
