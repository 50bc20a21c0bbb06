"""Whatever bytes a server sends: an answer, or the problem of that one request, in time and within bounds."""

from __future__ import annotations

import gzip
import json
import threading
import time
import tracemalloc
import zlib
from contextlib import closing

import pytest

from tests.lab.endpoint.raw import answer, serve_raw
from tests.lab.endpoint.server import reply
from tests.test_printable import harmless
from tithe.errors import SettingsError, TitheError
from tithe.lab.endpoint import wire
from tithe.lab.endpoint.address import Address
from tithe.lab.endpoint.chat_api import Reply, chat, chat_body, map_unordered
from tithe.lab.endpoint.client import Client
from tithe.records import Message, Problem

BODY = chat_body("m", [Message("user", "hello")])
FINE = Reply("fine", 1, True)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


def ask(url, **settings):
    with closing(Client(Address(url), **{"first_wait": 0.0, "retries": 0, "timeout": 5.0, **settings})) as client:
        return chat(client, BODY)


def said(content="fine", choice=None, **fields):
    """An answer with something else in it than expected."""
    one = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | (choice or {})
    return answer(json.dumps({"choices": [one], **fields}).encode())


DEEP = b"[" * 100_000 + b"]" * 100_000
PACKED = gzip.compress(json.dumps(reply("fine")).encode())
# Bytes -> the reason to be given, or None where only that there is one matters.
UNREADABLE = {
    "damaged gzip": (answer(PACKED[:20] + b"\xff\xff" + PACKED[22:], Content_Encoding="gzip"), "no whole answer"),
    "no gzip": (answer(Content_Encoding="gzip"), "no whole answer"),
    "half a gzip": (answer(PACKED[:-9], Content_Encoding="gzip"), "end too early"),
    "brotli": (answer(Content_Encoding="br"), "compressed as `br`"),
    "packed twice": (answer(Content_Encoding="gzip, gzip"), "compressed as `gzip, gzip`"),
    "deep": (answer(DEEP), "nested too deeply"),
    "deep object": (answer(b'{"a":' * 100_000), "nested too deeply|not JSON"),
    "deep error": (answer(b'{"error":' + DEEP + b"}", "500 No"), "HTTP 500"),
    "odd charset of an error": (answer(b"oh no", "500 No", Content_Type="text/plain; charset=zlib_codec"), "oh no"),
    "no charset": (answer(b"\xff\xfe", "500 No", Content_Type="text/plain; charset=\x00"), None),
    "huge integer": (answer(b'{"choices": ' + b"1" * 5000 + b"}"), "not JSON"),
    "a field twice": (answer(b'{"choices": [], "choices": []}'), "`choices` stands twice"),
    "cut utf-8": (answer(json.dumps(reply("\u00e4"), ensure_ascii=False).encode()[:50]), "not JSON"),
    "null": (answer(b"null"), "no choices"),
    "no choices, with an error": (answer(b'{"error": {"message": "out of cards"}}'), "no choices: out of cards"),
    "choices null": (answer(b'{"choices": null}'), "no choices"),
    "choices of numbers": (answer(b'{"choices": [1]}'), "no message"),
    "choices as an object": (answer(b'{"choices": {"0": {}}}'), "no choices"),
    "message as text": (answer(b'{"choices": [{"message": "hi"}]}'), "no message"),
    "content as a number": (said(5), "not text"),
    "content as an object": (said({"a": 1}), "not text"),
    "content as other parts": (said([{"type": "image"}]), "not text"),
    "half a character": (said("a\ud800"), "half a character"),
    "refusal": (said(None, {"message": {"content": None, "refusal": "I will not"}}), "refuses: I will not"),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", "empty"),
    "empty": (answer(b""), "empty"),
    "spaces": (answer(b"  \n"), "empty"),
    "too long announced": (answer()[:-20], "no whole answer"),
    "switching protocols": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "no whole answer"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "no whole answer"),
    "nothing": (b"", "no whole answer"),
    "broken header": (b"HTTP/1.1 200 OK\r\nA B\x00: \xff\r\n\r\n", "no whole answer"),
    "huge header": (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 500_000 + b"\r\n\r\n", "no whole answer"),
    "odd lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "no whole answer"),
    "length is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcdef", "no whole answer"),
    "broken chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", "no whole answer"),
    "status is no number": (b"HTTP/1.1 abc OK\r\n\r\n", "no whole answer"),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\n\r\n", "no whole answer"),
    "odd wait": (answer(b"", "429 Later", Retry_After="nan"), "HTTP 429"),
    "screen of an error": (answer(b'{"error": "a\\u001b[2J\\u202eb"}', "400 No"), "HTTP 400"),
}
READABLE = {
    "packed": (answer(PACKED, Content_Encoding="gzip"), FINE),
    "packed by zlib": (answer(zlib.compress(json.dumps(reply("fine")).encode()), Content_Encoding="deflate"), FINE),
    "parts": (said([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]), Reply("fine", None, True)),
    "no text": (said(None), Reply("", None, True)),
    "usage as text": (said(usage="x"), Reply("fine", None, True)),
    "usage of odd numbers": (said(usage={"completion_tokens": 10**400}), Reply("fine", None, True)),
    "usage below nothing": (said(usage={"completion_tokens": -1}), Reply("fine", None, True)),
    "usage not a number": (said(usage={"completion_tokens": float("nan")}), Reply("fine", None, True)),
    "odd ending": (said(choice={"finish_reason": 7}), Reply("fine", None, True)),
    "filtered": (said(choice={"finish_reason": "content_filter"}), Reply("fine", None, False)),
    "control characters": (said("a\x00\x1b[2J"), Reply("a\x00\x1b[2J", None, True)),
    "old HTTP": (answer().replace(b"HTTP/1.1", b"HTTP/1.0"), FINE),
    "until the end": (b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(reply("fine")).encode(), FINE),
    "after other statuses": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50 + answer(), FINE),
    "utf-16": (answer(json.dumps(reply("fine")).encode("utf-16")), FINE),
    "odd charset": (answer(Content_Type="application/json; charset=zlib_codec"), FINE),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_a_problem_with_its_reason(name):
    sent, reason = UNREADABLE[name]
    with serve_raw(lambda connection, number, request: connection.sendall(sent)) as url:
        got = ask(url)
    assert isinstance(got, Problem) and 8 < len(got.reason) <= 210
    if reason is not None:
        assert any(one in got.reason for one in reason.split("|"))


@pytest.mark.parametrize("name", READABLE)
def test_what_can_be_read_is_read(name):
    sent, expected = READABLE[name]
    with serve_raw(lambda connection, number, request: connection.sendall(sent)) as url:
        assert ask(url) == expected


def test_one_bad_answer_after_the_other_never_ends_a_run():
    """Each fault once among good answers: all the others are answered."""
    faults = [sent for sent, _ in UNREADABLE.values()]
    numbers = range(3 * len(faults))

    def play(connection, number, request):
        i = int(json.loads(request.partition(b"\r\n\r\n")[2])["messages"][0]["content"])
        connection.sendall(faults[i // 3] if i % 3 == 1 else answer())

    with serve_raw(play) as url, closing(Client(Address(url), retries=0, timeout=10.0)) as client:
        bodies = [chat_body("m", [Message("user", str(i))]) for i in numbers]
        found = dict(map_unordered(lambda i: chat(client, bodies[i]), numbers, 4, client.stop))
    assert {i for i, got in found.items() if got == FINE} == {i for i in numbers if i % 3 != 1}
    assert all(isinstance(found[i], Problem) for i in numbers if i % 3 == 1)


DRIPS = {
    "status": (b"", b"H"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "an error page": (b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("name", DRIPS)
def test_the_deadline_is_for_all_of_a_request(name):
    began, ended = time.monotonic(), threading.Event()
    before, drop = DRIPS[name]

    def play(connection, number, request):
        connection.sendall(before)
        while not ended.wait(0.02):
            connection.sendall(drop)

    with serve_raw(play) as url:
        got = ask(url, timeout=0.4)
        ended.set()
    assert got == Problem("no answer within 0.4 s")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("packing", ["identity", "gzip"])
def test_an_answer_without_end_is_not_read_to_its_end(packing, monkeypatch):
    monkeypatch.setattr(wire, "MOST_BYTES", 1 << 20)
    sent, most = [0], 200 << 20

    def play(connection, number, request):
        pack = zlib.compressobj(wbits=31)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Encoding: {packing}\r\n\r\n".encode())
        while sent[0] < most:
            part = b" " * 65536 if packing == "identity" else pack.compress(bytes(10 << 20))
            sent[0] += 65536 if packing == "identity" else 10 << 20
            connection.sendall(part)

    tracemalloc.start()
    try:
        with serve_raw(play) as url:
            got = ask(url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == Problem("the answer is longer than 1 MB")
    assert peak < 40 << 20  # the server's own 10 MB are among them
    assert packing == "gzip" or sent[0] < most


def test_a_redirect_is_not_followed_and_the_key_stays_here(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", "sk-secret-of-the-first-host")
    asked = []
    with (
        serve_raw(lambda connection, number, request: asked.append(request)) as other,
        serve_raw(
            lambda connection, number, request: connection.sendall(answer(b"", "307 Moved", Location=other))
        ) as url,
        pytest.raises(TitheError, match="HTTP 307, redirected to") as caught,
    ):
        ask(url)
    assert asked == [] and other in str(caught.value)


def test_what_no_server_can_be_sent_is_a_problem_of_that_prompt():
    play = lambda connection, number, request: connection.sendall(answer())  # noqa: E731
    with serve_raw(play) as url, closing(Client(Address(url))) as client:
        got = chat(client, chat_body("m", [Message("user", "a\ud800")]))
        assert isinstance(got, Problem) and "half a character" in got.reason and harmless(got.reason)
        assert isinstance(chat(client, chat_body("m", [], temperature=float("nan"))), Problem)
        assert chat(client, BODY) == FINE


@pytest.mark.parametrize(
    "proxy",
    ["ftp://me:hush-hush-hush@host", "http://[::1", "http://me:hush-hush-hush@[::1", "socks5://me:hush-hush-hush@h"],
)
def test_a_proxy_that_cannot_be_is_one_sentence_without_its_password(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises((TitheError, SettingsError)) as caught:
        Client(Address("http://example.org/v1"))
    assert "hush" not in f"{caught.value} {caught.value.hint}"
