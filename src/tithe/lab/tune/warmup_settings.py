"""Settings of `tithe warmup`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from tithe.errors import SettingsError
from tithe.lab.tune.settings import TuneSettings
from tithe.typed import Count


class WarmupSettings(TuneSettings):
    """The brief experience that IFD gives a model before it scores: which examples, and how it is trained on them.

    Args:
        records: how many examples; the paper tries 100, 300, 500 and 1000.
        choose: `kmeans`: of every cluster of like prompts some of middling perplexity, as the paper does; `distance`:
            of every cluster those nearest to its centre; `random`: by chance.
        clusters: of like prompts; each gives `records / clusters` examples.
        encoder: what makes vectors of prompts; `self` is the model itself.
    """

    recipe: str = "warmup"
    records: Count = 1000
    choose: Literal["kmeans", "distance", "random"] = "kmeans"
    clusters: Count = 100
    encoder: str = "self"

    @property
    def each(self) -> int:
        """Examples of a cluster."""
        return self.records // self.clusters

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.choose != "random" and self.records % self.clusters:
            raise SettingsError(
                f"{self.records} records cannot be taken from {self.clusters} clusters in equal parts",
                hint=f"`--records {max(1, self.each) * self.clusters}`, or another number of `--clusters`",
            )
        return self
