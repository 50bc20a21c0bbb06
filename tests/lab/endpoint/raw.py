"""A server that sends the bytes it is given, one after the other if that is the fault."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.lab.endpoint.server import reply


def answer(body: bytes | None = None, status: str = "200 OK", **headers: str) -> bytes:
    """An answer with its length; `{}` of a header's name are dashes."""
    body = json.dumps(reply("fine")).encode() if body is None else body
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode() + body


def read_request(connection: socket.socket) -> bytes:
    """Headers and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def serve_raw(play: Callable[[socket.socket, int, bytes], None]) -> Iterator[str]:
    """A server that plays with each connection; gives its address, `http://127.0.0.1:PORT/v1`."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended, threads = threading.Event(), []

    def meet(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            request = read_request(connection)
            if request:
                play(connection, number, request)

    def accept() -> None:
        number = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=meet, args=(connection, number)))
                threads[-1].start()
                number += 1

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        ended.set()
        accepting.join()
        for thread in threads:
            thread.join()
        listener.close()
