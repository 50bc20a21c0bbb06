"""One request to an endpoint, tried again where that can help.

Tried again: no connection, no answer in time, half an answer, HTTP 408, 409, 425, 429 and 5xx, and answers that cannot
be read. The waits double from one second, with jitter, or are what `Retry-After` says. Not tried again: a key that is
refused, a page or model that is not there, and whatever else the server says is wrong with the request itself.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from tithe.endpoint.address import Address
from tithe.errors import EndpointError
from tithe.records import Problem

T = TypeVar("T")
LATER = {408, 409, 425, 429}
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 300.0  # seconds that a server may ask for
KNOCKS = 3  # tries at an address that has never answered
GIVE_UP = 20  # requests in a row that failed in spite of all tries
KEPT = "what was answered is kept: the same command goes on from there"


class Unusable(Exception):
    """An answer that says nothing we can use; asking again may help."""


@dataclass(frozen=True)
class Again:
    """Why to try again, and after how many seconds if the server said so."""

    reason: str
    after: float | None = None
    reached: bool = True


@dataclass
class Client:
    """An endpoint that many threads may ask at once.

    Args:
        address: where it is.
        timeout: seconds until a request counts as failed.
        retries: how often one is tried again.
        first_wait: seconds before the first of these, doubled each time.
        connections: kept open at most.
    """

    address: Address
    timeout: float = 120.0
    retries: int = 5
    first_wait: float = 1.0
    connections: int = 8
    stopped: threading.Event = field(default_factory=threading.Event, init=False)
    answered: bool = field(default=False, init=False)
    failed: int = field(default=0, init=False)  # in a row
    tried_again: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        key = self.address.key
        self.http = httpx2.Client(
            timeout=self.timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=self.connections),
        )

    def close(self) -> None:
        """Wake whoever waits, and let go of the connections."""
        self.stopped.set()
        self.http.close()

    def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T | Problem:
        """Send one request until it is answered or there is no use in it.

        Args:
            path: page under the endpoint's address.
            body: sent as JSON.
            read: makes of the answer's JSON what is wanted; raises `Unusable` where it cannot.

        Returns:
            What `read` made, or why this request has no answer.

        Raises:
            EndpointError: nothing answers there, the key is refused, the page is not there, or all requests fail.
        """
        tries = 0
        while True:
            found = self.once(path, body, read)
            tries += 1
            if not isinstance(found, Again):
                return self.settled(found)
            if tries > self.retries or (not self.answered and not found.reached and tries >= KNOCKS):
                break
            self.tried_again += 1
            if self.stopped.wait(self.pause(tries, found.after)):
                return Problem("interrupted")
        if not found.reached and not self.answered:
            raise EndpointError(
                f"nothing answers at `{self.address.url}`: {found.reason}", hint="is the server running?"
            )
        return self.settled(Problem(found.reason))

    def settled(self, found: T | Problem) -> T | Problem:
        """Keep count of failures: a server that is broken for good is not asked thousands of times."""
        if not isinstance(found, Problem):
            self.failed = 0
            return found
        self.failed += 1
        if self.failed >= GIVE_UP:
            raise EndpointError(
                f"the last {self.failed} requests to `{self.address.url}` failed: {found.reason}", hint=KEPT
            )
        return found

    def once(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T | Problem | Again:
        """One try."""
        try:
            response = self.http.post(self.address.page(path), json=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return Again(self.address.clean(str(error)) or "no connection", reached=False)
        except httpx2.TimeoutException:
            return Again(f"no answer within {self.timeout:g} s")
        except httpx2.TransportError as error:
            return Again(f"no whole answer: {self.address.clean(str(error)) or type(error).__name__}")
        self.answered = True
        if response.is_success:
            try:
                return read(response.json())
            except Unusable as error:
                return Again(self.address.clean(str(error)))
            except ValueError:
                return Again("the answer is not JSON")
        return self.refused(response)

    def refused(self, response: httpx2.Response) -> Problem | Again:
        """What a status other than success means.

        Raises:
            EndpointError: where no other request would do better.
        """
        status, url = response.status_code, self.address.url
        said = f"HTTP {status}, {self.address.clean(own_words(response)) or response.reason_phrase}"
        if status in LATER or status >= 500:
            return Again(said, retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            name = self.address.key_env
            what = f"refuses the key in `{name}`" if self.address.key else f"wants a key, and `{name}` is not set"
            raise EndpointError(
                f"`{url}` {what} ({said})", hint=f"put the endpoint's key into the environment variable `{name}`"
            )
        if status in (404, 405) or status < 400:
            raise EndpointError(
                f"`{url}` has no such page or model ({said})",
                hint="the address ends before `/chat/completions`, often in `/v1`; the model has the server's name",
            )
        return Problem(said)

    def pause(self, tries: int, asked: float | None) -> float:
        """Seconds to wait after so many tries."""
        if asked is not None:
            return min(asked, LONGEST_ASKED)
        return min(self.first_wait * 2.0 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)


def own_words(response: httpx2.Response) -> str:
    """What the server says is wrong: OpenAI's `error.message`, or the text as it is."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    error = body.get("error", body) if isinstance(body, Mapping) else body
    words = error.get("message", error) if isinstance(error, Mapping) else error
    return words if isinstance(words, str) else str(words)


def retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where the header is missing or means nothing."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
