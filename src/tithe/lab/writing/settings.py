"""Settings of a model that writes: here, or behind an endpoint."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from tithe.config import Settings
from tithe.errors import SettingsError
from tithe.powers import KEY_ENV
from tithe.typed import Count, Seed

HERE = ("template", "dtype", "device", "batch_tokens", "trust_remote_code")  # read only by models that run here
THERE = ("api_key_env", "concurrency", "timeout", "retries")  # read only by an endpoint


class WritingSettings(Settings):
    """How a model writes.

    Args:
        temperature: 0 takes the likeliest token each time, above it is drawn.
        top_p: share of probability that is drawn from.
        max_new_tokens: tokens at which an answer is cut off.
        template: how prompts are put to a model that runs here: `auto`, a named template or a Jinja file.
        dtype: `auto`, `fp32`, `bf16`, `fp16`.
        device: `auto`, `cuda`, `mps`, `cpu`.
        batch_tokens: tokens a batch holds, answers included; None takes the device's default.
        trust_remote_code: run code that comes with the model.
        api_key_env: environment variable that holds the server's key.
        concurrency: requests at once.
        timeout: seconds for all of a request, from its start to the last byte of its answer.
        retries: how often a failed request is tried again.
        seed: of everything drawn at random.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: Count = 512
    template: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    batch_tokens: Count | None = None
    trust_remote_code: bool = False
    api_key_env: str = KEY_ENV
    concurrency: Count = 8
    timeout: float = 120.0
    retries: int = 5
    seed: Seed = 0

    @field_validator("temperature", "timeout", "retries", "top_p")
    @classmethod
    def not_negative(cls, value: float) -> float:
        if not 0 <= value < float("inf"):
            raise ValueError("it must be 0 or more")
        return value

    @model_validator(mode="after")
    def can_write(self) -> Self:
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"`top_p` cannot be `{self.top_p}`: it must be above 0 and at most 1")
        if self.timeout == 0:
            raise SettingsError("`timeout` cannot be `0`: no answer comes within no time")
        return self

    def check_read(self, served: bool) -> None:
        """Refuse what nothing reads.

        Args:
            served: whether the model is behind an endpoint.

        Raises:
            SettingsError: names the first such setting.
        """
        for name in THERE if not served else HERE:
            if getattr(self, name) != type(self).model_fields[name].default:
                where = "an endpoint does that itself" if served else "without `endpoint` nothing reads it"
                raise SettingsError(f"`{name}` is given as `{getattr(self, name)}`, and {where}", hint="leave it out")
