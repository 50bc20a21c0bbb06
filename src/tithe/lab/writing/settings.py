"""Settings of a model that writes, here or behind an endpoint."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from tithe.errors import SettingsError
from tithe.settings import ModelUse, SeedSettings
from tithe.settings_file import KEY_ENV
from tithe.typed import Count, Flag, NotNegative, WholeNumber

HERE = ("template", "dtype", "device", "batch_tokens", "trust_remote_code")  # read only by models that run here
THERE = ("api_key_env", "concurrency", "timeout", "retries")  # read only by an endpoint


class WritingSettings(SeedSettings, ModelUse):
    """How a model writes.

    Args:
        temperature: 0 always takes the likeliest token; above 0 tokens are sampled.
        top_p: probability mass that tokens are sampled from.
        max_new_tokens: tokens at which an answer is cut off.
        batch_tokens: tokens per batch, answers included; chosen for the device by default.
        api_key_env: environment variable that holds the server's key.
        concurrency: requests at the same time.
        timeout: seconds for a whole request, up to the last byte of its answer.
        retries: how often a failed request is retried.
    """

    temperature: NotNegative = 0.7
    top_p: NotNegative = 0.95
    max_new_tokens: Count = 512
    batch_tokens: Count | None = None
    api_key_env: Annotated[str, Flag(metavar="NAME")] = KEY_ENV
    concurrency: Count = 8
    timeout: NotNegative = 120.0
    retries: WholeNumber = 5

    @model_validator(mode="after")
    def can_write(self) -> Self:
        """Refuse values with which nothing could be written."""
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"`top_p` cannot be `{self.top_p}`: it must be above 0 and at most 1")
        if self.timeout == 0:
            raise SettingsError("`timeout` cannot be `0`: an answer takes some time")
        return self

    def check_read(self, served: bool) -> None:
        """Refuse settings that nothing reads.

        Args:
            served: whether the model is behind an endpoint.

        Raises:
            SettingsError: names the first such setting.
        """
        for name in THERE if not served else HERE:
            if getattr(self, name) != type(self).model_fields[name].default:
                where = "an endpoint does that itself" if served else "it is only used with `endpoint`"
                raise SettingsError(f"`{name}` is given as `{getattr(self, name)}`, but {where}", hint="leave it out")
