"""Settings of `tithe tiers build` and `tithe tiers import`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from tithe.errors import SettingsError
from tithe.lab.endpoint.address import check_url
from tithe.lab.writing.settings import WritingSettings
from tithe.settings import DatasetName, RecordSettings
from tithe.typed import Count, Flag, Labels, Texts


class TierSettings(WritingSettings, RecordSettings, DatasetName):
    """How tiers are built.

    Args:
        dataset: file, folder or hub id with the prompts; `starter` is bundled.
        strong: data set with the strong responses, matched by prompt; by default `dataset` holds them.
        strong_model: who gave the strong responses, for records without a column `model`.
        sample: how many of the prompts with a strong response to draw; all by default.
        weak_model: model that answers the same prompts: a folder, hub id, or an endpoint's name; may be repeated.
        endpoint: address of an OpenAI-compatible server that has the weak models, e.g. `http://localhost:8000/v1`.
    """

    strong: str | None = None
    strong_model: str | None = None
    sample: Count | None = None
    weak_model: Annotated[Texts, Flag(("-w",), metavar="MODEL")] = ()
    endpoint: Annotated[str | None, Flag(metavar="URL")] = None

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


class TierImportSettings(RecordSettings):
    """How existing tiers are read.

    Args:
        files: data sets with a column `tier`, or with columns `high` and `low`.
        high_file: data set whose responses are all of the high tier; may be repeated.
        low_file: data set whose responses are all of the low tier; may be repeated.
        high_tier: labels in the column `tier` that mean high.
        low_tier: labels in the column `tier` that mean low.
        high_model: who gave the responses of `high_file`, for records without a column `model`.
        low_model: who gave the responses of `low_file`, for records without a column `model`.
        limit: read only so many records of each data set.
    """

    files: Annotated[Texts, Flag(metavar="FILE", positional=True)] = ()
    high_file: Annotated[Texts, Flag(metavar="FILE")] = ()
    low_file: Annotated[Texts, Flag(metavar="FILE")] = ()
    high_tier: Annotated[Labels, Flag(metavar="NAME[,NAME]")] = ("high",)
    low_tier: Annotated[Labels, Flag(metavar="NAME[,NAME]")] = ("low",)
    high_model: str | None = None
    low_model: str | None = None

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
