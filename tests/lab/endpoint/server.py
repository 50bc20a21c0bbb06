"""A real server on this machine's own address, which misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-1234567890"


def reply(text: str, **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": more.pop("finish_reason", "stop")}
    return {"choices": [choice], "usage": {"completion_tokens": len(text.split())}, **more}


@dataclass
class Played:
    """What a server was asked, and what it says: `say(number, body)` gives `(status, body, headers)` or a word.

    Words: `half` closes the connection in the middle of the answer, `cut` before it, `slow` answers after a second.
    """

    say: Callable[[int, dict[str, Any]], Any]
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0
    most: int = 0
    url: str = ""

    def ok(self, body: dict[str, Any]) -> dict[str, Any]:
        return reply(f"answer to {body['messages'][-1]['content']}")


class Handler(BaseHTTPRequestHandler):
    played: Played

    def do_POST(self) -> None:
        played = self.played
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with played.lock:
            number = len(played.asked)
            played.asked.append(body)
            played.pages.append(self.path)
            played.times.append(time.monotonic())
            played.under_way += 1
            played.most = max(played.most, played.under_way)
        try:
            said = self.answer(number, body)
        finally:  # before the reply goes out: who has it may ask again at once
            with played.lock:
                played.under_way -= 1
        if said in ("half", "cut"):
            return self.close_early(body, said)
        status, content, headers = said if isinstance(said, tuple) else (200, said, {})
        self.send(status, content, headers)

    def answer(self, number: int, body: dict[str, Any]) -> Any:
        played = self.played
        if played.key is not None and self.headers.get("Authorization") != f"Bearer {played.key}":
            given = self.headers.get("Authorization", "none")
            return 401, {"error": {"message": f"Incorrect API key provided: {given}"}}, {}
        said = played.say(number, body)
        if said == "slow":
            time.sleep(1.0)
            said = played.ok(body)
        return said

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # who asked has gone
            self.wfile.write(data)

    def close_early(self, body: dict[str, Any], how: str) -> None:
        data = json.dumps(self.played.ok(body)).encode()
        if how == "half":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Not on stderr."""


@contextmanager
def serve(say: Callable[[int, dict[str, Any]], Any] | None = None, key: str | None = None) -> Iterator[Played]:
    played = Played(say or (lambda number, body: played.ok(body)), key)
    handler = type("Bound", (Handler,), {"played": played})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    played.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield played
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
