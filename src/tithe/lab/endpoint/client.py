"""One request to an endpoint, tried again where that can help.

Tried again: no connection, no answer in time, half an answer, HTTP 408, 409, 425, 429 and 5xx, and answers that cannot
be read. The waits double from one second, with jitter, or are what `Retry-After` says. Not tried again: a key that is
refused, a page or model that is not there, and whatever else the server says is wrong with the request itself.
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from tithe.errors import EndpointError
from tithe.lab.endpoint.address import LOGGERS, Address, HideSecrets, secrets
from tithe.lab.endpoint.wire import Arrived, Wire, WireError
from tithe.records import Problem

T = TypeVar("T")
LATER = {408, 409, 425, 429}
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 300.0  # seconds that a server may ask for
KNOCKS = 3  # tries at an address that has never answered
REFUSED = 5  # requests in a row that were refused for a reason that is no single request's
GIVE_UP = 20  # requests in a row that failed in spite of all tries
KEPT = "what was answered is kept: the same command goes on from there"


class Unusable(Exception):
    """An answer that says nothing we can use; asking again may help."""


@dataclass(frozen=True)
class Retry:
    """Why to try again, and after how many seconds if the server said so."""

    reason: str
    after: float | None = None
    reached: bool = True


@dataclass(frozen=True)
class ServerRefusal:
    """No other request would do better, unless one did already: what is wrong, and the way out."""

    reason: str
    what: str
    hint: str


@dataclass
class Client:
    """An endpoint that many threads may ask at ask_once.

    Whatever a server sends becomes an answer, another try, or the problem of that one request.

    Args:
        address: where it is.
        timeout: seconds for all of a request, until its answer's last byte.
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
    lock: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)
    answered: bool = field(default=False, init=False)  # in whatever way
    useful: bool = field(default=False, init=False)  # at least ask_once
    under_way: int = field(default=0, init=False)
    in_doubt: int = field(default=0, init=False)  # refused, while others are under way that may be answered
    refused: int = field(default=0, init=False)  # in a row
    failed: int = field(default=0, init=False)  # in a row
    tried_again: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        key = self.address.key
        try:
            self.wire = Wire(self.connections, {"Authorization": f"Bearer {key}"} if key else {})
        except (WireError, ValueError, OSError, ImportError) as error:  # a proxy, or a file of certificates
            said = self.address.clean(str(error))
        else:
            self.filter = HideSecrets(secrets(self.address.key_env))
            for name in LOGGERS:
                logging.getLogger(name).addFilter(self.filter)
            return
        raise EndpointError(
            f"no connection to `{self.address.url}` can be made ready: {said}",
            hint="look at the environment variables `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `SSL_CERT_FILE`",
        )

    def close(self) -> None:
        """Wake whoever waits, and let go of the connections."""
        self.stop()
        self.wire.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self.filter)

    def stop(self) -> None:
        """Wake whoever waits."""
        self.stopped.set()
        with self.lock:
            self.lock.notify_all()

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
        try:
            sent = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            return Problem(f"the request cannot be written as JSON: {self.address.clean(unwritable(error))}")
        with self.lock:
            self.under_way += 1
        try:
            return self.count_failures(self.ask_until_settled(path, sent, read))
        finally:
            with self.lock:
                self.under_way -= 1
                self.lock.notify_all()

    def ask_until_settled(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | ServerRefusal:
        """Try until it helps no more.

        Raises:
            EndpointError: nothing answers there.
        """
        tries = 0
        while True:
            found = self.ask_once(path, sent, read)
            tries += 1
            if not isinstance(found, Retry):
                return found
            if tries > self.retries or (not self.answered and not found.reached and tries >= KNOCKS):
                break
            with self.lock:
                self.tried_again += 1
            if self.stopped.wait(self.pause(tries, found.after)):
                return Problem("interrupted")
        if not found.reached and not self.answered:
            raise EndpointError(
                f"nothing answers at `{self.address.url}`: {found.reason}", hint="is the server running?"
            )
        return Problem(found.reason)

    def count_failures(self, found: T | Problem | ServerRefusal) -> T | Problem:
        """Keep count of failures: a server that is broken for good is not asked thousands of times.

        Raises:
            EndpointError: the server refuses, or all requests fail.
        """
        with self.lock:
            if not isinstance(found, Problem | ServerRefusal):
                self.failed, self.refused, self.useful = 0, 0, True
                self.lock.notify_all()
                return found
            hopeless = isinstance(found, ServerRefusal) and self.hopeless()
            if self.stopped.is_set() and not hopeless:
                return Problem(found.reason)  # the run ends already, and for its own reason
            self.failed += 1
            failed = self.failed
        if isinstance(found, ServerRefusal) and hopeless:
            raise EndpointError(f"`{self.address.url}` {found.what} ({found.reason})", hint=found.hint)
        if failed >= GIVE_UP:
            raise EndpointError(f"the last {failed} requests to `{self.address.url}` failed: {found.reason}", hint=KEPT)
        return Problem(found.reason)

    def hopeless(self) -> bool:
        """Whether a refusal is meant for all requests: several were refused in a row, or none was ever answered well.

        The first ones wait for what else is under way: one answer decides that the refusal is for its request alone.
        """
        self.refused += 1
        self.in_doubt += 1
        self.lock.notify_all()
        self.lock.wait_for(lambda: self.useful or self.stopped.is_set() or self.in_doubt == self.under_way)
        self.in_doubt -= 1
        return self.refused >= REFUSED or not (self.useful or self.stopped.is_set())

    def ask_once(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | Retry | ServerRefusal:
        """One try. All that a server says leaves through here, without the key."""
        found: T | Problem | Retry | ServerRefusal
        try:
            found = self.exchange(path, sent, read)
        except WireError as error:
            found = Retry(str(error), reached=error.reached)
        except Unusable as error:
            found = Retry(str(error))
        except Exception as error:  # what else somebody's bytes can set off: it is the trouble of this request alone
            found = Retry(f"the answer cannot be read: {type(error).__name__}, {error}")
        if isinstance(found, Problem | Retry | ServerRefusal):
            return replace(found, reason=self.address.clean(found.reason))
        return found

    def exchange(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | Retry | ServerRefusal:
        """Send it, and make something of what comes back.

        Raises:
            WireError: nothing whole comes back.
            Unusable: it says nothing we can use.
        """
        response = self.wire.post(self.address.page(path), sent, self.timeout)
        self.answered = True
        if not 200 <= response.status < 300:
            return self.refusal_of(response)
        if not response.body.strip():
            raise Unusable(f"the answer is empty (HTTP {response.status})")
        return read(read_json(response.body))

    def refusal_of(self, response: Arrived) -> Problem | Retry | ServerRefusal:
        """What a status other than success means."""
        status = response.status
        said = f"HTTP {status}, {own_words(response)}"
        if status in LATER or status >= 500 or status < 200:
            return Retry(said, retry_after(response.headers.get("Retry-After")))
        if status < 400:
            said = f"HTTP {status}, sent on to {response.headers.get('Location', 'nowhere')}"
            return ServerRefusal(said, "sends requests on, and tithe does not follow", "give the address itself")
        if status in (401, 403):
            name = self.address.key_env
            what = f"refuses the key in `{name}`" if self.address.key else f"wants a key, and `{name}` is not set"
            return ServerRefusal(said, what, f"put the endpoint's key into the environment variable `{name}`")
        if status in (404, 405):
            hint = "the address ends before `/chat/completions`, often in `/v1`; the model has the server's name"
            return ServerRefusal(said, "has no such page or model", hint)
        return Problem(said)

    def pause(self, tries: int, asked: float | None) -> float:
        """Seconds to wait after so many tries."""
        if asked is not None:
            return min(asked, LONGEST_ASKED)
        return min(self.first_wait * 2.0 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)


def unwritable(error: Exception) -> str:
    """Why a request is no JSON; the commonest reason in plain words."""
    if isinstance(error, UnicodeEncodeError):
        return f"it holds half a character, {error.object[error.start : error.start + 1]!r}"
    return str(error) or type(error).__name__


def read_json(data: bytes) -> Any:
    """JSON of which every field is there ask_once.

    Raises:
        Unusable: it is none, or it is nested too deeply.
    """
    try:
        return json.loads(data, object_pairs_hook=each_once)
    except ValueError:
        raise Unusable("the answer is not JSON") from None
    except RecursionError:
        raise Unusable("the answer is nested too deeply") from None


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a field is there twice: which of them is meant, nobody can know."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Unusable(f"the answer has the field `{name[:40]}` twice")
        found[name] = value
    return found


def own_words(response: Arrived) -> str:
    """What the server says is wrong: OpenAI's `error.message`, or the text as it is, or what the status means."""
    text = response.body.decode("utf-8", "replace")
    try:
        words = message_of(json.loads(text))
    except (ValueError, RecursionError):
        words = text
    known = {status.value: status.phrase for status in HTTPStatus}
    return words.strip() or response.phrase or known.get(response.status, "without a reason")


def message_of(body: Any) -> str:
    """OpenAI's `error.message`, `error` or `message`; else all that there is."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    words = error.get("message", error) if isinstance(error, Mapping) else error
    return words if isinstance(words, str) else "" if words in (None, {}, []) else json.dumps(words)


def retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where the header is missing or means nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return None if math.isnan(seconds) else max(0.0, seconds)
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None
