"""Settings of `tithe judge answer` and `tithe judge compare`."""

from __future__ import annotations

from typing import Self

from pydantic import field_validator, model_validator

from tithe.errors import SettingsError
from tithe.lab.endpoint.address import check_url
from tithe.lab.writing.settings import WritingSettings
from tithe.typed import Count


class AnswerSettings(WritingSettings):
    """How a model answers a prompt set; what is not told of here, `WritingSettings` tells.

    Args:
        prompts: file of prompts, JSON lines or JSON.
        model: folder, hub id or bundled name; with `endpoint`, the server's name for it.
        endpoint: address of an OpenAI-compatible server that has the model, e.g. `http://localhost:8000/v1`.
        limit: read only so many prompts.
        temperature: 0 takes the likeliest token each time, above it is drawn.
    """

    prompts: str
    model: str
    endpoint: str | None = None
    limit: Count | None = None
    temperature: float = 0.0

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.endpoint is not None:
            check_url(self.endpoint, self.api_key_env)
        self.check_read(served=self.endpoint is not None)
        return self


class JudgeSettings(WritingSettings):
    """Who judges, and how; what is not told of here, `WritingSettings` tells.

    Args:
        judge: a model that runs here (folder, hub id or bundled name), or the address of an OpenAI-compatible server,
            e.g. `http://localhost:8000/v1`.
        judge_model: the server's name for the model that judges.
        name: of the prompt set, for the metric `judge <name>`; None takes the stem of the file of A's answers.
        attempts: how often a judge is asked for a verdict whose reply holds none.
        level: of confidence, for the interval of the win rate.
        temperature: 0 takes the likeliest token each time, above it is drawn.
    """

    judge: str
    judge_model: str | None = None
    name: str | None = None
    attempts: Count = 3
    level: float = 0.95
    temperature: float = 0.0

    @property
    def endpoint(self) -> str | None:
        """The judge's address; None where it runs here."""
        return self.judge if "://" in self.judge else None

    @property
    def who(self) -> str:
        """The model, as it is called where it runs."""
        return self.judge_model or self.judge

    @field_validator("level")
    @classmethod
    def inside(cls, value: float) -> float:
        if not 0 < value < 1:
            raise ValueError("it must be between 0 and 1, for example 0.95")
        return value

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.endpoint is not None:
            check_url(self.endpoint, self.api_key_env)  # first: no message repeats an address that holds a password
        if self.endpoint is not None and self.judge_model is None:
            raise SettingsError(
                f"no judge is named at `{self.judge}`", hint="`--judge-model NAME`, as the server calls the model"
            )
        if self.endpoint is None and self.judge_model is not None:
            raise SettingsError(
                f"`judge_model` is given as `{self.judge_model}`, and the judge `{self.judge}` runs here",
                hint="a judge behind an endpoint is given by its address, e.g. `--judge http://localhost:8000/v1`",
            )
        self.check_read(served=self.endpoint is not None)
        return self
