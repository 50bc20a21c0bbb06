"""Where an endpoint is, and which key opens it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import httpx2

from tithe.errors import SettingsError
from tithe.lab.endpoint.secrets import hide, scrub, secrets
from tithe.printable import printable
from tithe.settings_file import KEY_ENV, is_name

LONGEST = 200  # characters of a server's own words in a message
LOOKED_AT = 20 * LONGEST  # of them: a key that is cut off here is far behind what is shown
LOOKS_LIKE = "it looks like `http://localhost:8000/v1`"


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
        check_url(self.url, self.key_env)
        if self.key_env != KEY_ENV and not self.key:
            named = f"`{self.key_env}`" if is_name(self.key_env) else "of that name"  # may be the key: not repeated
            raise SettingsError(
                f"the environment variable {named} is not set",
                hint="`api_key_env` is the name of a variable that holds the endpoint's key, not the key",
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
        """Somebody else's words for a message of ours: one line, not too long, without the key or a piece of it."""
        words = hide(" ".join(text[:LOOKED_AT].split()), secrets(self.key_env))
        return words if len(words) <= LONGEST else words[:LONGEST] + "..."

    def scrub(self, text: str) -> str:
        """An answer without the key, if it should repeat that."""
        return scrub(text, secrets(self.key_env))


def check_url(url: str, key_env: str = KEY_ENV) -> None:
    """Raise unless an endpoint can be at this address.

    Raises:
        SettingsError: it is no URL of http or https, or holds a secret, which is not repeated.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        if usable:
            httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        raise SettingsError("the endpoint is not a URL", hint=LOOKS_LIKE) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            "the endpoint's URL holds a name, a password or a query, which would be written to the run record",
            hint=f"give the bare address, and the key in the environment variable `{key_env}`",
        )
    if scrub(unquote(url), secrets(key_env)) != unquote(url):
        raise SettingsError(
            f"the endpoint's URL holds the key in `{key_env}`, which would be written to the run record",
            hint="give the bare address: the key is sent in a header",
        )
    if not usable:
        guess = f"`http://{url}`?" if "://" not in url else "it begins with `http://` or `https://`"
        raise SettingsError(f"the endpoint `{url}` is not an address of http or https", hint=guess)
    if url != printable(url) or url.split() != [url]:
        raise SettingsError(f"the endpoint `{url}` holds spaces or characters that are not seen", hint=LOOKS_LIKE)
