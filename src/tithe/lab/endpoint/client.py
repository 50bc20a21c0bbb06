"""Send requests to an endpoint, and retry those that may succeed later.

Retried are: no connection, no answer in time, an incomplete answer, HTTP 408, 409, 425, 429 and 5xx, and answers that
cannot be read. The waits double from one second, with jitter, unless `Retry-After` says otherwise. Not retried are: a
refused key, a page or model that does not exist, and anything else that the server says is wrong with the request.
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
from tithe.foreign import FieldTwiceError, unique_fields
from tithe.lab.endpoint.address import LOGGERS, Address, HideSecrets, secrets
from tithe.lab.endpoint.wire import HttpAnswer, Wire, WireError
from tithe.records import Problem

T = TypeVar("T")
RETRIED = {408, 409, 425, 429}  # HTTP statuses below 500
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 300.0  # seconds that a server may ask for
FIRST_TRIES = 3  # tries at an address that has never answered
REFUSED = 5  # requests refused in a row, each for a reason that holds for all requests, after which the run ends
GIVE_UP = 20  # requests that failed in a row, with all their retries, after which the run ends
KEPT = "what was answered is kept: the same command goes on from there"


class Unusable(Exception):
    """An answer holds nothing that can be used; asking again may help."""


@dataclass(frozen=True)
class Retry:
    """A failure that is worth a retry.

    Args:
        reason: what failed.
        after: seconds to wait, if the server said so.
        reached: whether there was a server to answer.
    """

    reason: str
    after: float | None = None
    reached: bool = True


@dataclass(frozen=True)
class ServerRefusal:
    """A refusal that other requests would meet as well, unless one of them was answered.

    Args:
        reason: the server's words.
        what: what the server does, in our words.
        hint: the way out.
    """

    reason: str
    what: str
    hint: str


@dataclass
class Client:
    """Client of an endpoint, for many threads at once.

    Whatever a server sends becomes an answer, a retry, or the problem of that one request.

    Args:
        address: the endpoint's address.
        timeout: seconds for a whole request, up to the last byte of the answer.
        retries: how often a failed request is retried.
        first_wait: seconds before the first retry, doubled each time.
        connections: most connections open at the same time.
    """

    address: Address
    timeout: float = 120.0
    retries: int = 5
    first_wait: float = 1.0
    connections: int = 8
    stopped: threading.Event = field(default_factory=threading.Event, init=False)
    lock: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)
    answered: bool = field(default=False, init=False)  # whatever the answer was
    useful: bool = field(default=False, init=False)  # at least one answer was usable
    under_way: int = field(default=0, init=False)
    in_doubt: int = field(default=0, init=False)  # requests that were refused and wait for the others: see `hopeless`
    refused: int = field(default=0, init=False)  # in a row
    failed: int = field(default=0, init=False)  # in a row
    tried_again: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        key = self.address.key
        try:
            self.wire = Wire(self.connections, {"Authorization": f"Bearer {key}"} if key else {})
        except (WireError, ValueError, OSError, ImportError) as error:  # a proxy or a certificate file is wrong
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
        """Stop waiting requests, and close the connections."""
        self.stop()
        self.wire.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self.filter)

    def stop(self) -> None:
        """Stop requests that wait for their next try, and those that wait for other requests."""
        self.stopped.set()
        with self.lock:
            self.lock.notify_all()

    def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T | Problem:
        """Send one request, with retries.

        Args:
            path: page under the endpoint's address.
            body: the request, sent as JSON.
            read: turns the answer's JSON into a result; raises `Unusable` if it cannot.

        Returns:
            The result of `read`, or why this request has none.

        Raises:
            EndpointError: there is no server, it refuses the key, the page does not exist, or all requests fail.
        """
        try:
            sent = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            return Problem(f"the request cannot be written as JSON: {self.address.clean(describe_json_error(error))}")
        with self.lock:
            self.under_way += 1
        try:
            return self.count_failures(self.ask_until_settled(path, sent, read))
        finally:
            with self.lock:
                self.under_way -= 1
                self.lock.notify_all()

    def ask_until_settled(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | ServerRefusal:
        """Try until there is a result or no retry can help.

        Raises:
            EndpointError: there is no server.
        """
        tries = 0
        while True:
            found = self.ask_once(path, sent, read)
            tries += 1
            if not isinstance(found, Retry):
                return found
            if tries > self.retries or (not self.answered and not found.reached and tries >= FIRST_TRIES):
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
        """Count failures in a row, so that a broken server is not asked thousands of times.

        Raises:
            EndpointError: the server refuses all requests, or too many failed in a row.
        """
        with self.lock:
            if not isinstance(found, Problem | ServerRefusal):
                self.failed, self.refused, self.useful = 0, 0, True
                self.lock.notify_all()
                return found
            hopeless = isinstance(found, ServerRefusal) and self.hopeless()
            if self.stopped.is_set() and not hopeless:
                return Problem(found.reason)  # the run is ending already, for another reason
            self.failed += 1
            failed = self.failed
        if isinstance(found, ServerRefusal) and hopeless:
            raise EndpointError(f"`{self.address.url}` {found.what} ({found.reason})", hint=found.hint)
        if failed >= GIVE_UP:
            raise EndpointError(f"the last {failed} requests to `{self.address.url}` failed: {found.reason}", hint=KEPT)
        return Problem(found.reason)

    def hopeless(self) -> bool:
        """Return whether a refusal holds for all requests: several were refused in a row, or no answer was ever usable.

        Before the first usable answer, a refused request waits for those under way; if one of them is answered, the
        refusal holds only for its own request. If all of them are refused, it holds for all.
        """
        self.refused += 1
        self.in_doubt += 1
        self.lock.notify_all()
        self.lock.wait_for(lambda: self.useful or self.stopped.is_set() or self.in_doubt == self.under_way)
        self.in_doubt -= 1
        return self.refused >= REFUSED or not (self.useful or self.stopped.is_set())

    def ask_once(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | Retry | ServerRefusal:
        """Try once, and take the key out of whatever the server says."""
        found: T | Problem | Retry | ServerRefusal
        try:
            found = self.exchange(path, sent, read)
        except WireError as error:
            found = Retry(str(error), reached=error.reached)
        except Unusable as error:
            found = Retry(str(error))
        except Exception as error:  # unexpected bytes can raise anything; only this request is affected
            found = Retry(f"the answer cannot be read: {type(error).__name__}, {error}")
        if isinstance(found, Problem | Retry | ServerRefusal):
            return replace(found, reason=self.address.clean(found.reason))
        return found

    def exchange(self, path: str, sent: bytes, read: Callable[[Any], T]) -> T | Problem | Retry | ServerRefusal:
        """Send the request, and read the answer.

        Raises:
            WireError: there is no complete answer.
            Unusable: the answer holds nothing that can be used.
        """
        response = self.wire.post(self.address.page(path), sent, self.timeout)
        self.answered = True
        if not 200 <= response.status < 300:
            return self.refusal_of(response)
        if not response.body.strip():
            raise Unusable(f"the answer is empty (HTTP {response.status})")
        return read(read_json(response.body))

    def refusal_of(self, response: HttpAnswer) -> Problem | Retry | ServerRefusal:
        """Return what a status other than success means."""
        status = response.status
        said = f"HTTP {status}, {server_words(response)}"
        if status in RETRIED or status >= 500 or status < 200:
            return Retry(said, retry_after(response.headers.get("Retry-After")))
        if status < 400:
            said = f"HTTP {status}, redirected to {response.headers.get('Location', 'nowhere')}"
            return ServerRefusal(
                said, "redirects requests, and tithe does not follow", "give the address that it redirects to"
            )
        if status in (401, 403):
            name = self.address.key_env
            what = f"refuses the key in `{name}`" if self.address.key else f"wants a key, and `{name}` is not set"
            return ServerRefusal(said, what, f"put the endpoint's key into the environment variable `{name}`")
        if status in (404, 405):
            hint = "the address ends before `/chat/completions`, often in `/v1`; the model has the server's name"
            return ServerRefusal(said, "has no such page or model", hint)
        return Problem(said)

    def pause(self, tries: int, asked: float | None) -> float:
        """Return the seconds to wait after so many tries."""
        if asked is not None:
            return min(asked, LONGEST_ASKED)
        return min(self.first_wait * 2.0 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)


def describe_json_error(error: Exception) -> str:
    """Say why a request cannot be written as JSON."""
    if isinstance(error, UnicodeEncodeError):
        return f"it holds half a character, {error.object[error.start : error.start + 1]!r}"
    return str(error) or type(error).__name__


def read_json(data: bytes) -> Any:
    """Parse JSON in which each field of an object occurs once.

    Raises:
        Unusable: it is not JSON, is nested too deeply, or has a field twice.
    """
    try:
        return json.loads(data, object_pairs_hook=unique_fields)
    except FieldTwiceError as error:
        raise Unusable(f"in the answer, {error}") from None
    except ValueError:
        raise Unusable("the answer is not JSON") from None
    except RecursionError:
        raise Unusable("the answer is nested too deeply") from None


def server_words(response: HttpAnswer) -> str:
    """Return what the server says is wrong: OpenAI's `error.message`, else the body, else what the status means."""
    text = response.body.decode("utf-8", "replace")
    try:
        words = message_of(json.loads(text))
    except (ValueError, RecursionError):
        words = text
    known = {status.value: status.phrase for status in HTTPStatus}
    return words.strip() or response.phrase or known.get(response.status, "without a reason")


def message_of(body: Any) -> str:
    """Return OpenAI's `error.message`, `error` or `message`; else the whole body."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    words = error.get("message", error) if isinstance(error, Mapping) else error
    return words if isinstance(words, str) else "" if words in (None, {}, []) else json.dumps(words)


def retry_after(value: str | None) -> float | None:
    """Return seconds from a header of seconds or of a date; None if it is missing or unreadable."""
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
