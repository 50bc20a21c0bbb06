"""Send one request and receive its answer as bytes, with a deadline for the whole and a limit on the answer's size."""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass
from typing import Any

import httpx2

MOST_BYTES = 16 << 20  # of an unpacked answer; one of 100,000 tokens has less than 1 MB
GRACE = 5.0  # seconds after the deadline to close a connection
PACKED = {"gzip": zlib.MAX_WBITS | 32, "x-gzip": zlib.MAX_WBITS | 32, "deflate": zlib.MAX_WBITS | 32}


class WireError(Exception):
    """There is no answer, or none that can be read; `reached` if there was a server to answer."""

    def __init__(self, reason: str, *, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True)
class HttpAnswer:
    """A complete answer.

    Args:
        status: HTTP status.
        phrase: reason phrase of the status.
        headers: headers; names in any case.
        body: unpacked body.
    """

    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to one server, on an event loop in its own thread, where a request can be stopped at any point.

    A synchronous client limits the wait for each byte, not for the whole answer: a server that sends one byte a second,
    even of its headers, would hold it for ever.

    Args:
        connections: most connections open at the same time.
        headers: headers of each request.
    """

    def __init__(self, connections: int, headers: Mapping[str, str]) -> None:
        try:
            self.http = httpx2.AsyncClient(
                timeout=None,  # `post` has one deadline for the whole request
                headers={"Accept-Encoding": "gzip", **headers},
                limits=httpx2.Limits(max_connections=connections),
                follow_redirects=False,  # another address must not get the request, nor the key
            )
        except httpx2.InvalidURL as error:
            raise WireError(f"the address of a proxy is not a URL: {error}") from None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="tithe-endpoint", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self.http.aclose(), self.loop).result(GRACE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def post(self, url: str, body: bytes, timeout: float) -> HttpAnswer:
        """Send JSON and wait for the whole answer.

        Args:
            url: address of the page.
            body: the JSON.
            timeout: seconds for everything, from the look-up of the host to the answer's last byte.

        Raises:
            WireError: no connection, no answer in time, an incomplete answer, or one that is too long.
        """
        under_way = asyncio.run_coroutine_threadsafe(self.exchange(url, body, timeout), self.loop)
        try:
            return under_way.result(timeout + GRACE)
        except LateError:
            under_way.cancel()
        raise WireError(deadline_message(timeout))

    async def exchange(self, url: str, body: bytes, timeout: float) -> HttpAnswer:
        """Do what `post` does, on the event loop."""
        reached = False  # by the client's trace: whether the connection got as far as sending the request

        async def note(step: str, about: Mapping[str, Any]) -> None:
            nonlocal reached
            reached = reached or "send_request" in step

        more: dict[str, Any] = {"trace": note}
        sent = self.http.build_request(
            "POST", url, content=body, headers={"Content-Type": "application/json"}, extensions=more
        )
        try:
            async with asyncio.timeout(timeout):
                response = await self.http.send(sent, stream=True)
                try:
                    content = await read_body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            problem = WireError(deadline_message(timeout), reached=reached)
        except (
            httpx2.ConnectError,
            httpx2.ProxyError,
            UnicodeError,
        ) as error:  # `UnicodeError`: a host name that DNS cannot hold
            problem = WireError(root_message(error) or "no connection", reached=False)
        except (httpx2.HTTPError, httpx2.StreamError, OSError, zlib.error) as error:
            problem = WireError(f"no whole answer: {root_message(error) or type(error).__name__}")
        else:
            return HttpAnswer(response.status_code, response.reason_phrase, response.headers, content)
        raise problem  # outside `except`: with the library's error as its context it would hold the request and the key


def deadline_message(timeout: float) -> str:
    return f"no answer within {timeout:g} s"


def root_message(error: BaseException) -> str:
    """Return the message of the first cause: `Connection refused`, not `All connection attempts failed`."""
    while True:
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
        if inner is None or isinstance(inner, asyncio.CancelledError):
            code = error.errno if isinstance(error, OSError) else None
            return f"[Errno {code}] {os.strerror(code)}" if code and code > 0 else str(error)
        error = inner


async def read_body(response: httpx2.Response) -> bytes:
    """Return the unpacked body, and read no more than `MOST_BYTES` of it, however small it is packed.

    Raises:
        WireError: it is longer, incomplete, or packed in a way that was not asked for.
    """
    packing, found = response.headers.get("Content-Encoding", "identity").strip().lower() or "identity", bytearray()
    if packing not in ("identity", *PACKED):
        raise WireError(f"the answer is compressed as `{packing}`, which was not asked for")
    unpack = zlib.decompressobj(PACKED[packing]) if packing in PACKED else None
    take: Callable[[bytes], bytes] = (
        (lambda part: part) if unpack is None else (lambda part: unpack.decompress(part, MOST_BYTES + 1 - len(found)))
    )
    async for part in response.aiter_raw():
        found += take(part)
        if len(found) > MOST_BYTES:
            raise WireError(f"the answer is longer than {MOST_BYTES >> 20} MB")
    if unpack is not None and not unpack.eof and found:
        raise WireError("no whole answer: the compressed data end too early")
    return bytes(found)
