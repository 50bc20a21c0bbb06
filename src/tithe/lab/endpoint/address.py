"""An endpoint's address and key, and how secrets are kept out of messages, records and logs."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote, urlsplit

import httpx2

from tithe.errors import SettingsError
from tithe.printable import printable
from tithe.settings_file import KEY_ENV, is_name

LONGEST = 200  # characters that a message shows of a server's words
LOOKED_AT = 20 * LONGEST  # characters searched for keys; one that is cut off at the end is far behind what is shown
LOOKS_LIKE = "it looks like `http://localhost:8000/v1`"


@dataclass(frozen=True)
class Address:
    """An endpoint's address. The key is read from the environment, so no `repr`, record or message contains it.

    Args:
        url: address up to the version, e.g. `http://localhost:8000/v1`.
        key_env: name of the environment variable that holds the key.
    """

    url: str
    key_env: str = KEY_ENV

    def __post_init__(self) -> None:
        check_url(self.url, self.key_env)
        if self.key_env != KEY_ENV and not self.key:
            named = (
                f"`{self.key_env}`" if is_name(self.key_env) else "of that name"
            )  # not repeated, as it may be the key itself
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
        """Return the key; None if the variable is not set."""
        return os.environ.get(self.key_env, "").strip() or None

    def page(self, path: str) -> str:
        """Return the address of a page; the user may have given the page's own address already."""
        base = self.url.rstrip("/")
        return base if base.endswith(path) else base + path

    def clean(self, text: str) -> str:
        """Prepare a server's words for a message: one line, not too long, without the key or a piece of it."""
        words = hide(" ".join(text[:LOOKED_AT].split()), secrets(self.key_env))
        return words if len(words) <= LONGEST else words[:LONGEST] + "..."

    def scrub(self, text: str) -> str:
        """Take the key out of an answer."""
        return scrub(text, secrets(self.key_env))


def check_url(url: str, key_env: str = KEY_ENV) -> None:
    """Check an endpoint's address.

    Raises:
        SettingsError: it is not an http or https URL, or holds a secret, which is not repeated.
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
        raise SettingsError(f"the endpoint `{url}` holds spaces or invisible characters", hint=LOOKS_LIKE)


HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PIECE = 8  # characters of a secret in a row that must not be shown; shorter secrets are everyday words
HIDDEN = "***"
LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))


def secrets(key_env: str = KEY_ENV) -> tuple[str, ...]:
    """Return the secrets in the environment: keys, and the passwords of proxies."""
    named = (os.environ.get(name, "").strip() for name in dict.fromkeys((key_env, KEY_ENV, *HUB)))
    return tuple(dict.fromkeys(value for value in (*named, *passwords()) if value))


def passwords() -> Iterator[str]:
    """Yield the passwords in the addresses of proxies."""
    import urllib.request  # slow to import

    for url in urllib.request.getproxies().values():
        try:
            password = urlsplit(url).password
        except ValueError:  # not an address; whatever uses it will say so
            continue
        if password:
            yield from (password, unquote(password))


def hide(text: str, values: Sequence[str]) -> str:
    """Take secrets out of a message, also pieces of them: a server may show a shortened key."""
    whole, words, pieces = patterns(tuple(values))
    for pattern in (whole, words):
        text = pattern.sub(HIDDEN, text) if pattern is not None else text
    return hide_pieces(text, pieces)


def scrub(text: str, values: Sequence[str]) -> str:
    """Take whole secrets out of data. Short ones stay, as many servers want a word such as `EMPTY` for a key."""
    whole, _, _ = patterns(tuple(values))
    return whole.sub(HIDDEN, text) if whole is not None else text


def hide_pieces(text: str, pieces: frozenset[str]) -> str:
    """Replace every run of characters that consists of pieces of secrets."""
    lower, end = text.translate(_LOWER), 0
    out: list[str] = []
    for start in range(len(text) - PIECE + 1):
        if lower[start : start + PIECE] in pieces:
            if start > end or not out:
                out += [text[end:start], HIDDEN]
            end = start + PIECE
    return "".join([*out, text[end:]])


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # only ASCII, so that positions stay the same


@lru_cache(maxsize=8)
def patterns(values: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None, frozenset[str]]:
    """Return a pattern for long secrets anywhere, one for short secrets as whole words, and the pieces of long ones."""
    long = {form for value in values if len(value) >= PIECE for form in encodings(value) if len(form) >= PIECE}
    short = {
        form for value in values if len(value) < PIECE for form in encodings(value) if form == value or len(form) > 3
    }
    pieces = {form[i : i + PIECE].translate(_LOWER) for form in long for i in range(len(form) - PIECE + 1)}
    return any_of(long), any_of(short, "(?<![A-Za-z0-9])(?:{})(?![A-Za-z0-9])"), frozenset(pieces)


def any_of(forms: set[str], around: str = "{}") -> re.Pattern[str] | None:
    """Return one pattern for all forms; the longest comes first, so that no remainder of it is left."""
    escaped = "|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form))))
    return re.compile(around.format(escaped), re.IGNORECASE) if forms else None


def encodings(value: str) -> set[str]:
    """Return a secret as it is and as JSON, URLs, HTML, hex and base64 encode it, also in the middle of other bytes."""
    data = value.encode("utf-8", "surrogatepass")
    found = {value, json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value), data.hex()}
    found |= {quote(data, safe=""), quote(data), quote_plus(data)}
    for before in range(3):  # base64 encodes three bytes as four characters, so bytes before the secret shift it
        first, last = (
            (8 * before + 5) // 6,
            8 * (before + len(data)) // 6,
        )  # the characters that depend only on the secret
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + data).decode()[first:last])
    return found


class HideSecrets(logging.Filter):
    """Keep secrets out of the HTTP library's log, which contains what servers answer."""

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__()
        self.values = values

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, without secrets."""
        record.msg, record.args = hide(record.getMessage(), self.values), ()
        return True
