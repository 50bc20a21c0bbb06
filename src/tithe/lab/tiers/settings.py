"""Settings of `tithe tiers build` and `tithe tiers import`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import field_validator, model_validator

from tithe.config import Settings, labels, read_yaml
from tithe.errors import SettingsError
from tithe.lab.endpoint.address import check_url
from tithe.lab.writing.settings import WritingSettings
from tithe.powers import check_powers
from tithe.typed import Count

Made = TypeVar("Made", bound=Settings)


class TierSettings(WritingSettings):
    """How tiers are built; what is not told of here, `WritingSettings` tells.

    Args:
        dataset: prompts: file, folder or hub id.
        format: shape of its records, or `auto`.
        split: split of a hub data set.
        limit: read only so many of its records.
        strict: stop at the first bad row.
        strong: data set with the strong responses, found by their prompts; None takes the responses of `dataset`.
        strong_model: who gave them, where the records have no column `model`.
        sample: so many prompts, drawn by chance of those with a strong response; None takes all.
        weak_model: models that answer the same prompts; folders, hub ids, or an endpoint's names.
        endpoint: address of an OpenAI-compatible server that has the weak models, e.g. `http://localhost:8000/v1`.
    """

    dataset: str
    format: str = "auto"
    split: str | None = None
    limit: Count | None = None
    strict: bool = False
    strong: str | None = None
    strong_model: str | None = None
    sample: Count | None = None
    weak_model: tuple[str, ...] = ()
    endpoint: str | None = None

    @field_validator("weak_model", mode="before")
    @classmethod
    def one_model(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def possible(self) -> Self:
        if not self.weak_model:
            raise SettingsError("no weak model is given", hint="`--weak-model NAME`, more than once for several")
        twice = [name for i, name in enumerate(self.weak_model) if name in self.weak_model[:i]]
        if twice:
            raise SettingsError(f"the weak model `{twice[0]}` is given twice", hint="one answer per prompt and model")
        if self.endpoint is not None:
            check_url(self.endpoint, self.api_key_env)
        self.check_read(served=self.endpoint is not None)
        return self


class TierImportSettings(Settings):
    """How tiers that are already there are read.

    Args:
        files: data sets with a column `tier`, or with columns `high` and `low`.
        high_file: data sets whose responses are all of the high tier.
        low_file: data sets whose responses are all of the low tier.
        high_tier: labels in the column `tier` that mean high.
        low_tier: labels in the column `tier` that mean low.
        high_model: who gave the responses of `high_file`, where its records have no column `model`.
        low_model: the same of `low_file`.
        format: shape of the records, or `auto`.
        split: split of a hub data set.
        limit: read only so many records of each data set.
        strict: stop at the first bad row.
    """

    files: tuple[str, ...] = ()
    high_file: tuple[str, ...] = ()
    low_file: tuple[str, ...] = ()
    high_tier: tuple[str, ...] = ("high",)
    low_tier: tuple[str, ...] = ("low",)
    high_model: str | None = None
    low_model: str | None = None
    format: str = "auto"
    split: str | None = None
    limit: Count | None = None
    strict: bool = False

    @field_validator("files", "high_file", "low_file", mode="before")
    @classmethod
    def one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("high_tier", "low_tier", mode="before")
    @classmethod
    def names(cls, value: Any) -> Any:
        return labels(value)

    @model_validator(mode="after")
    def possible(self) -> Self:
        if not (self.files or self.high_file or self.low_file):
            raise SettingsError(
                "no file is given", hint="`tithe tiers import FILE`, or `--high-file FILE --low-file FILE`"
            )
        if not self.files and not (self.high_file and self.low_file):
            there, other = ("high", "low") if self.high_file else ("low", "high")
            raise SettingsError(f"`--{there}-file` is given without `--{other}-file`", hint="tiers need both")
        for name, needed in (("high_model", "high_file"), ("low_model", "low_file")):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise SettingsError(f"`{name}` is given, and there is no `{needed}` whose model that is")
        return self


def settings_of(kind: type[Made], flags: Mapping[str, Any], config: Path | None = None) -> Made:
    """A YAML file, then flags, which win; a flag that was left out is None or an empty list.

    Raises:
        SettingsError: an unknown setting, or a value that cannot be.
    """
    values = read_yaml(config) if config is not None else {}
    if config is not None:
        check_powers(values, flags, config)
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    return kind.of(values | {key: value for key, value in given.items() if key in kind.model_fields})
