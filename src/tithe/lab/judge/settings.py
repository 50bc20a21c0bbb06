"""Settings of `tithe judge answer` and `tithe judge compare`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from tithe.errors import SettingsError
from tithe.lab.endpoint.address import check_url
from tithe.lab.writing.settings import WritingSettings
from tithe.settings import NAMED_MODEL
from tithe.typed import Count, Flag, NotNegative, checked

Level = Annotated[float, checked(lambda x: 0 < x < 1, "it must be between 0 and 1, for example 0.95")]


class AnswerSettings(WritingSettings):
    """How a model answers a prompt set.

    Args:
        prompts: file of prompts, JSON lines or JSON, in the shape it was published in.
        model: folder or hub id; with `endpoint`, the server's name for it.
        endpoint: address of an OpenAI-compatible server that has the model, e.g. `http://localhost:8000/v1`.
        limit: read only the first so many prompts.
    """

    prompts: Annotated[str, Flag(metavar="PROMPTS", positional=True)]
    model: Annotated[str, NAMED_MODEL]
    endpoint: Annotated[str | None, Flag(metavar="URL")] = None
    limit: Count | None = None
    temperature: NotNegative = 0.0

    @model_validator(mode="after")
    def possible(self) -> Self:
        """Refuse an address that cannot be one, and settings that nothing reads."""
        if self.endpoint is not None:
            check_url(self.endpoint, self.api_key_env)
        self.check_read(served=self.endpoint is not None)
        return self


class JudgeSettings(WritingSettings):
    """Who judges, and how.

    Args:
        judge: the model that judges, a folder or hub id; or the address of an OpenAI-compatible server, e.g.
            `http://localhost:8000/v1`.
        judge_model: the server's name for the model that judges.
        name: name of the prompt set, for the metric `judge <name>`; by default that of the file with A's answers.
        attempts: how often to ask a judge whose reply holds no verdict.
        level: confidence of the win rate's interval.
    """

    judge: Annotated[str, Flag(metavar="MODEL_OR_URL")]
    judge_model: Annotated[str | None, Flag(metavar="NAME")] = None
    name: str | None = None
    attempts: Count = 3
    level: Level = 0.95
    temperature: NotNegative = 0.0

    @property
    def endpoint(self) -> str | None:
        """Return the judge's address; None if it runs here."""
        return self.judge if "://" in self.judge else None

    @property
    def who(self) -> str:
        """Return the judge's name, as the server calls it or as it was given."""
        return self.judge_model or self.judge

    @model_validator(mode="after")
    def possible(self) -> Self:
        """Refuse a judge without a name, an address that cannot be one, and settings that nothing reads."""
        if self.endpoint is not None:
            check_url(self.endpoint, self.api_key_env)  # first: the messages below repeat the address
        if self.endpoint is not None and self.judge_model is None:
            raise SettingsError(
                f"no model is given for the judge at `{self.judge}`",
                hint="`--judge-model NAME`, as the server calls the model",
            )
        if self.endpoint is None and self.judge_model is not None:
            raise SettingsError(
                f"`judge_model` is given as `{self.judge_model}`, but the judge `{self.judge}` runs here",
                hint="a judge behind an endpoint is given by its address, e.g. `--judge http://localhost:8000/v1`",
            )
        self.check_read(served=self.endpoint is not None)
        return self
