"""Where an endpoint is, and which key opens it."""

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


HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PIECE = 8  # characters in a row that give a part of a secret away; a secret that is shorter is an everyday word
HIDDEN = "***"
LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))


def secrets(key_env: str = KEY_ENV) -> tuple[str, ...]:
    """Values of the environment that must not be written down: keys, and the passwords of proxies."""
    named = (os.environ.get(name, "").strip() for name in dict.fromkeys((key_env, KEY_ENV, *HUB)))
    return tuple(dict.fromkeys(value for value in (*named, *passwords()) if value))


def passwords() -> Iterator[str]:
    """Passwords in the addresses of proxies."""
    import urllib.request  # takes a while

    for url in urllib.request.getproxies().values():
        try:
            password = urlsplit(url).password
        except ValueError:  # it is no address, and what uses it says so
            continue
        if password:
            yield from (password, unquote(password))


def hide(text: str, values: Sequence[str]) -> str:
    """Take secrets out of a message, and pieces of them: a server may cut a key before it shows it."""
    whole, words, pieces = patterns(tuple(values))
    for pattern in (whole, words):
        text = pattern.sub(HIDDEN, text) if pattern is not None else text
    return without_pieces(text, pieces)


def scrub(text: str, values: Sequence[str]) -> str:
    """Take whole secrets out of data. Short ones stay: many servers want a key that is a word, such as `EMPTY`."""
    whole, _, _ = patterns(tuple(values))
    return whole.sub(HIDDEN, text) if whole is not None else text


def without_pieces(text: str, pieces: frozenset[str]) -> str:
    """Replace every run of characters that is covered by pieces."""
    lower, end = text.translate(_LOWER), 0
    out: list[str] = []
    for start in range(len(text) - PIECE + 1):
        if lower[start : start + PIECE] in pieces:
            if start > end or not out:
                out += [text[end:start], HIDDEN]
            end = start + PIECE
    return "".join([*out, text[end:]])


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # ASCII alone: lengths stay as they are


@lru_cache(maxsize=8)
def patterns(values: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None, frozenset[str]]:
    """What finds long secrets anywhere, short ones as words of their own, and pieces of long ones."""
    long = {form for value in values if len(value) >= PIECE for form in forms(value) if len(form) >= PIECE}
    short = {form for value in values if len(value) < PIECE for form in forms(value) if form == value or len(form) > 3}
    pieces = {form[i : i + PIECE].translate(_LOWER) for form in long for i in range(len(form) - PIECE + 1)}
    return any_of(long), any_of(short, "(?<![A-Za-z0-9])(?:{})(?![A-Za-z0-9])"), frozenset(pieces)


def any_of(forms: set[str], around: str = "{}") -> re.Pattern[str] | None:
    """One pattern, the longest form first."""
    escaped = "|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form))))
    return re.compile(around.format(escaped), re.IGNORECASE) if forms else None


def forms(value: str) -> set[str]:
    """A secret as it is, and as JSON, URLs, HTML, hexadecimal digits and base64 write it, also amid other bytes."""
    data = value.encode("utf-8", "surrogatepass")
    found = {value, json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value), data.hex()}
    found |= {quote(data, safe=""), quote(data), quote_plus(data)}
    for before in range(3):  # base64 writes three bytes as four characters: what stands before shifts the rest
        first, last = (8 * before + 5) // 6, 8 * (before + len(data)) // 6  # characters that are of the secret alone
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + data).decode()[first:last])
    return found


class HideSecrets(logging.Filter):
    """Keeps secrets out of the log of the HTTP library, which writes down what servers answer."""

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__()
        self.values = values

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = hide(record.getMessage(), self.values), ()
        return True
