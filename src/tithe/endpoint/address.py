"""Where an endpoint is, and which key opens it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from tithe.errors import SettingsError

KEY_ENV = "TITHE_API_KEY"
LONGEST = 200  # characters of a server's own words in a message


@dataclass(frozen=True)
class Address:
    """An endpoint's address. The key is read from the environment, and no `repr`, record or message has it.

    Args:
        url: up to the version, e.g. `http://localhost:8000/v1`.
        key_env: name of the environment variable that holds the key.
    """

    url: str
    key_env: str = KEY_ENV

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            raise SettingsError("the endpoint is not a URL", hint="it looks like `http://localhost:8000/v1`") from None
        if parts.username or parts.password or parts.query:
            raise SettingsError(
                "the endpoint's URL holds a name, a password or a query, which would be written to the run record",
                hint=f"give the bare address, and the key in the environment variable `{self.key_env}`",
            )
        if not usable:
            guess = f"`http://{self.url}`?" if "://" not in self.url else "it begins with `http://` or `https://`"
            raise SettingsError(f"the endpoint `{self.url}` is not an address of http or https", hint=guess)
        if self.key_env != KEY_ENV and not self.key:
            raise SettingsError(
                f"the environment variable `{self.key_env}` is not set", hint="it is to hold the endpoint's key"
            )
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise SettingsError(
                f"the key in `{self.key_env}` holds characters that no HTTP header can hold", hint="copy it again"
            )

    @property
    def key(self) -> str | None:
        return os.environ.get(self.key_env, "").strip() or None

    def page(self, path: str) -> str:
        """The address of a page under the endpoint's; one that was given already is not doubled."""
        base = self.url.rstrip("/")
        return base if base.endswith(path) else base + path

    def clean(self, text: str) -> str:
        """Somebody else's words for a message of ours: one line, not too long, without the key."""
        words = " ".join(text.split())
        if self.key:
            words = words.replace(self.key, "***")
        return words if len(words) <= LONGEST else words[:LONGEST] + "..."
