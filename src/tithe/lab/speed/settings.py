"""Settings of `tithe bench`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import field_validator

from tithe.settings import ScoreSettings
from tithe.typed import Count, Positive, checked

Readings = Annotated[int, checked(lambda n: n >= 3, "fewer than 3 readings show no spread")]


class BenchSettings(ScoreSettings):
    """How a run's speed is measured; the other settings are those of `score`.

    Args:
        limit: records of the sample, spread evenly over the data set.
        records: records of the job; all of the data set by default.
        repeats: how often the sample is read; at least 3, to show the spread.
        seconds: about how long one reading may take; a sample that takes longer is cut down.
    """

    limit: Count = 200
    records: Count | None = None
    repeats: Readings = 3
    seconds: Positive = 8.0

    @field_validator("limit", mode="before")
    @classmethod
    def demand_size(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a sample needs a size")
        return value

    @property
    def job(self) -> ScoreSettings:
        """The settings of the run to forecast."""
        own = BenchSettings.model_fields.keys() - ScoreSettings.model_fields.keys()
        return ScoreSettings(**self.model_dump(exclude={*own, "limit", "per_token"}), limit=self.records)
