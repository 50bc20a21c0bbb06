"""One request and its answer as bytes: a deadline for all of it, and a bound on what may come back."""

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

MOST_BYTES = 16 << 20  # of an answer, unpacked: one of 100,000 tokens has less than 1 MB
GRACE = 5.0  # seconds after the deadline for letting go of a connection
PACKED = {"gzip": zlib.MAX_WBITS | 32, "x-gzip": zlib.MAX_WBITS | 32, "deflate": zlib.MAX_WBITS | 32}


class WireError(Exception):
    """No answer, or none that can be read; `reached` where somebody was there to answer."""

    def __init__(self, reason: str, *, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True)
class Arrived:
    """What came back.

    Args:
        status: of HTTP.
        phrase: that came with the status.
        headers: by name, in any case.
        body: unpacked.
    """

    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to one server, on an event loop in a thread of its own: there a request can be stopped anywhere.

    A synchronous client bounds the wait for each byte, not for all: a server that sends one byte a second, be it of its
    headers, holds such a client for ever.

    Args:
        connections: kept open at most.
        headers: of each request.
    """

    def __init__(self, connections: int, headers: Mapping[str, str]) -> None:
        try:
            self.http = httpx2.AsyncClient(
                timeout=None,  # the deadline is for all of a request
                headers={"Accept-Encoding": "gzip", **headers},
                limits=httpx2.Limits(max_connections=connections),
                follow_redirects=False,  # what is sent, and the key with it, is for this address alone
            )
        except httpx2.InvalidURL as error:
            raise WireError(f"the address of a proxy is no URL: {error}") from None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="tithe-endpoint", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Let go of the connections and of the thread."""
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self.http.aclose(), self.loop).result(GRACE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def post(self, url: str, body: bytes, timeout: float) -> Arrived:
        """Send JSON and wait for the whole answer.

        Args:
            url: to send to.
            body: to send.
            timeout: seconds for all of it, from the look-up of the name to the answer's last byte.

        Raises:
            WireError: no answer within that time, no connection, half an answer, or one that is too long.
        """
        under_way = asyncio.run_coroutine_threadsafe(self.exchange(url, body, timeout), self.loop)
        try:
            return under_way.result(timeout + GRACE)
        except LateError:
            under_way.cancel()
        raise WireError(too_late(timeout))

    async def exchange(self, url: str, body: bytes, timeout: float) -> Arrived:
        reached = False

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
                    content = await unpacked(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            problem = WireError(too_late(timeout), reached=reached)
        except (httpx2.ConnectError, httpx2.ProxyError, UnicodeError) as error:  # the last: a name that DNS cannot hold
            problem = WireError(root(error) or "no connection", reached=False)
        except (httpx2.HTTPError, httpx2.StreamError, OSError, zlib.error) as error:
            problem = WireError(f"no whole answer: {root(error) or type(error).__name__}")
        else:
            return Arrived(response.status_code, response.reason_phrase, response.headers, content)
        raise problem  # outside of `except`: the library's exception holds the request, and that the key


def too_late(timeout: float) -> str:
    return f"no answer within {timeout:g} s"


def root(error: BaseException) -> str:
    """The words of what was first to go wrong: `Connection refused`, not `All connection attempts failed`."""
    while True:
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
        if inner is None or isinstance(inner, asyncio.CancelledError):
            code = error.errno if isinstance(error, OSError) else None
            return f"[Errno {code}] {os.strerror(code)}" if code and code > 0 else str(error)
        error = inner


async def unpacked(response: httpx2.Response) -> bytes:
    """The body, no more of it than `MOST_BYTES`, however it is packed.

    Raises:
        WireError: it is longer, or packed in a way that was not asked for.
    """
    packing, found = response.headers.get("Content-Encoding", "identity").strip().lower() or "identity", bytearray()
    if packing not in ("identity", *PACKED):
        raise WireError(f"the answer is packed as `{packing}`, which was not asked for")
    unpack = zlib.decompressobj(PACKED[packing]) if packing in PACKED else None
    take: Callable[[bytes], bytes] = (
        (lambda part: part) if unpack is None else (lambda part: unpack.decompress(part, MOST_BYTES + 1 - len(found)))
    )
    async for part in response.aiter_raw():
        found += take(part)
        if len(found) > MOST_BYTES:
            raise WireError(f"the answer is longer than {MOST_BYTES >> 20} MB")
    if unpack is not None and not unpack.eof and found:
        raise WireError("no whole answer: what it was packed in ends too early")
    return bytes(found)
