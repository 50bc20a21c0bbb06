"""A client against a real server that plays every fault we know."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from email.utils import format_datetime

import pytest

from tests.lab.endpoint.server import KEY, reply, serve
from tithe.errors import EndpointError, SettingsError
from tithe.lab.endpoint import client as module
from tithe.lab.endpoint.address import Address
from tithe.lab.endpoint.chat_api import Reply, chat, chat_body, map_unordered
from tithe.lab.endpoint.client import Client, retry_after
from tithe.records import Message, Problem

BODY = chat_body("m", [Message("user", "hello")], temperature=0.5, top_p=None)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


def ask(played, **settings):
    with closing(Client(Address(played.url), **{"first_wait": 0.01, "retries": 3, **settings})) as client:
        return chat(client, BODY)


def test_an_answer_is_an_answer():
    with serve() as played:
        assert ask(played) == Reply("answer to hello", 3, True)
    assert played.asked == [{"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5}]
    assert played.pages == ["/v1/chat/completions"]


def first(fault):
    """A server that misbehaves once, then answers."""
    return lambda number, body: fault if number == 0 else reply("at last")


FAULTS = {
    "429": (429, {"error": {"message": "slow down"}}, {}),
    "500": (500, b"oh", {}),
    "503": (503, {"error": "busy"}, {}),
    "malformed": (200, b'{"choices": [{"mess', {}),
    "not utf-8": (200, b'"\xff\xfe', {}),
    "half": "half",
    "cut": "cut",
    "no choices": (200, {"choices": []}, {}),
    "no object": (200, [1, 2], {}),
    "no message": (200, {"choices": [7]}, {}),
    "no text": (200, {"choices": [{"message": {"content": 5}}]}, {}),
    "tool call": (200, {"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_overcome(name):
    with serve(first(FAULTS[name])) as played:
        assert ask(played) == Reply("at last", 2, True)
    assert len(played.asked) == 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_a_problem_with_its_reason(name):
    with serve(lambda number, body: FAULTS[name]) as played:
        got = ask(played, retries=2)
    assert isinstance(got, Problem) and len(got.reason) > 8
    assert len(played.asked) == 3
    if name in ("429", "500", "503"):
        assert f"HTTP {name}" in got.reason


def test_retry_after_is_heeded():
    with serve(first((429, {}, {"Retry-After": "0.6"}))) as played:
        assert isinstance(ask(played), Reply)
    assert played.times[1] - played.times[0] >= 0.6


def test_retry_after_in_seconds_or_as_a_date():
    import datetime

    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 95 < retry_after(format_datetime(soon, usegmt=True)) <= 100
    assert retry_after("7") == 7 and retry_after("-3") == 0 and retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("nan") is None and retry_after("inf") == retry_after("9" * 5000) == float("inf")
    for odd in ("Wed, 21 Oct 99999 07:28:00 GMT", "Mon, 01 Jan 0001 00:00:00 +9999", "\x00", "1, 2", "-", "0x10"):
        assert retry_after(odd) in (None, 0)
    assert retry_after("soon") is None and retry_after(None) is None and retry_after("") is None


def test_waits_double_and_are_never_longer_than_a_minute():
    made = Client(Address("http://localhost:1/v1"))
    for tries, most in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (50, 60)):
        waits = [made.pause(tries, None) for _ in range(50)]
        assert all(most / 2 <= wait <= most for wait in waits) and len(set(waits)) > 10
    assert made.pause(1, 9.0) == 9.0 and made.pause(1, 1e9) == module.LONGEST_ASKED
    made.close()


def test_a_slow_answer_runs_out_of_time():
    with serve(lambda number, body: "slow") as played:
        got = ask(played, timeout=0.6, retries=1)
    assert got == Problem("no answer within 0.6 s")


def test_a_cut_off_answer_is_marked():
    with serve(lambda number, body: reply("half of", finish_reason="length")) as played:
        assert ask(played) == Reply("half of", 2, False)


def test_a_wrong_key_is_not_tried_again_and_not_shown(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", "wrong-" + KEY)
    with serve(key=KEY) as played, pytest.raises(EndpointError) as caught:
        ask(played)
    assert len(played.asked) == 1
    assert "refuses the key in `TITHE_API_KEY` (HTTP 401" in str(caught.value) and "***" in str(caught.value)
    assert KEY not in f"{caught.value} {caught.value.hint}"


def test_a_missing_key_names_the_variable():
    with serve(key=KEY) as played, pytest.raises(EndpointError, match="wants a key, and `TITHE_API_KEY` is not set"):
        ask(played)
    assert len(played.asked) == 1


def test_the_right_key_opens_and_is_nowhere_else(monkeypatch):
    monkeypatch.setenv("OTHER_KEY", f" {KEY}\n")
    with serve(key=KEY) as played, closing(Client(Address(played.url, "OTHER_KEY"))) as client:
        assert isinstance(chat(client, BODY), Reply)
        assert KEY not in repr(client) and KEY not in repr(client.address)
    assert KEY not in str(played.asked)


def test_the_key_is_taken_out_of_what_a_server_says(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", KEY)
    with serve(lambda number, body: (400, {"error": {"message": f"{KEY} may\nnot"}}, {}), key=KEY) as played:
        assert ask(played) == Problem("HTTP 400, *** may not")
    assert len(played.asked) == 1  # the request itself is wrong


def test_a_page_that_is_not_there_stops():
    missing = (404, {"error": {"message": "no model `m`"}}, {})
    with serve(lambda number, body: missing) as played, pytest.raises(EndpointError, match="HTTP 404, no model `m`"):
        ask(played)
    assert len(played.asked) == 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there_is_one_sentence_and_soon():
    began, address = time.monotonic(), Address(f"http://127.0.0.1:{free_port()}/v1")
    with (
        closing(Client(address, first_wait=0.01, retries=50)) as client,
        pytest.raises(EndpointError, match=f"nothing answers at `{address.url}`: "),
    ):
        chat(client, BODY)
    assert time.monotonic() - began < 5


def test_a_server_that_always_fails_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "GIVE_UP", 4)
    with (
        serve(lambda number, body: (500, {}, {}) if number != 2 else reply("once")) as played,
        closing(Client(Address(played.url), retries=0)) as client,
    ):
        found = [chat(client, BODY) for _ in range(6)]
        assert [isinstance(one, Problem) for one in found] == [True, True, False, True, True, True]
        with pytest.raises(EndpointError, match="the last 4 requests to"):
            chat(client, BODY)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "not an address"),
        ("localhost", "not an address"),
        ("ftp://localhost/v1", "not an address"),
        ("http://", "not an address"),
        ("", "not an address"),
        ("http://[::1", "not a URL"),
        ("http://a:99999/v1", "not a URL"),
        ("http://me:pass@localhost/v1", "a name, a password or a query"),
        ("http://localhost/v1?key=pass", "a name, a password or a query"),
        ("http://localhost/v1#pass", "a name, a password or a query"),
        ("http://localhost/v1/a\nb", "not a URL|invisible"),
        ("http://\u200b/v1", "not a URL|invisible"),
        ("http://localhost/a b", "not a URL|invisible"),
        ("http://local\u202ehost/v1", "not a URL|invisible"),
    ],
)
def test_addresses_that_cannot_be(url, said):
    with pytest.raises(SettingsError, match=said) as caught:
        Address(url)
    assert "pass@" not in str(caught.value) and "key=pass" not in str(caught.value)


@pytest.mark.parametrize("written", ["sk-01/23+456789abcdef", "sk-01%2F23%2B456789abcdef"])
def test_an_address_that_holds_the_key_is_refused(monkeypatch, written):
    """It would stand in the run's record, in messages and in the server's log."""
    monkeypatch.setenv("TITHE_API_KEY", "sk-01/23+456789abcdef")
    with pytest.raises(SettingsError, match="holds the key in `TITHE_API_KEY`") as caught:
        Address(f"http://localhost/{written}/v1")
    assert "456789" not in f"{caught.value} {caught.value.hint}"
    monkeypatch.setenv("TITHE_API_KEY", "v1")  # a word, as many servers want one
    assert Address("http://localhost/v1").key == "v1"


def test_keys_that_cannot_be(monkeypatch):
    with pytest.raises(SettingsError, match="`NO_SUCH_KEY` is not set"):
        Address("http://localhost/v1", "NO_SUCH_KEY")
    with pytest.raises(SettingsError, match="variable of that name is not set") as caught:
        Address("http://localhost/v1", "sk-0123456789abcdef")  # the key in the place of its variable's name
    assert "0123456789" not in f"{caught.value} {caught.value.hint}"
    monkeypatch.setenv("TITHE_API_KEY", "abc\ndef")
    with pytest.raises(SettingsError, match="no HTTP header can hold") as caught:
        Address("http://localhost/v1")
    assert "abc" not in str(caught.value)


def test_pages_are_not_doubled():
    assert Address("http://h/v1/").page("/x") == Address("http://h/v1/x").page("/x") == "http://h/v1/x"


def test_a_pool_is_bounded_and_answers_all():
    def say(number, body):
        time.sleep(0.02)
        return played.ok(body)

    with serve(say) as played, closing(Client(Address(played.url), connections=4)) as client:
        bodies = [chat_body("m", [Message("user", str(i))]) for i in range(30)]
        found = dict(map_unordered(lambda i: chat(client, bodies[i]), range(30), 4, client.stop))
    assert {i: one.text for i, one in found.items()} == {i: f"answer to {i}" for i in range(30)}
    assert 2 <= played.most <= 4


def test_a_pool_that_fails_gives_up_what_waits_and_keeps_what_came(monkeypatch):
    monkeypatch.setattr(module, "GIVE_UP", 4)

    def say(number, body):
        what = body["messages"][0]["content"]
        return played.ok(body) if what == "0" else (503, {}, {"Retry-After": "100"}) if what == "1" else (401, {}, {})

    began, found = time.monotonic(), []
    with serve(say) as played, closing(Client(Address(played.url))) as client:
        bodies = [chat_body("m", [Message("user", str(i))]) for i in range(50)]
        with pytest.raises(EndpointError):
            for i, got in map_unordered(lambda i: chat(client, bodies[i]), range(50), 3, client.stop):
                found.append((i, got))
    assert time.monotonic() - began < 20
    assert (1, Problem("interrupted")) in found and 0 in dict(found) and len(found) < 50


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 405, 413])
def test_one_refusal_among_answers_is_the_problem_of_its_item(status):
    """Whether it comes first or later: the run goes on, and nothing that was answered is lost."""
    bad = {3, 0}

    def say(number, body):
        time.sleep(0.01)
        return (
            (status, {"error": "not this one"}, {}) if int(body["messages"][0]["content"]) in bad else played.ok(body)
        )

    with serve(say) as played, closing(Client(Address(played.url), retries=0)) as client:
        bodies = [chat_body("m", [Message("user", str(i))]) for i in range(20)]
        found = dict(map_unordered(lambda i: chat(client, bodies[i]), range(20), 4, client.stop))
    assert {i for i, got in found.items() if isinstance(got, Problem)} == bad
    assert f"HTTP {status}" in found[3].reason


def test_a_key_that_all_requests_are_refused_for_ends_the_run_soon(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", "wrong-" + KEY)
    with serve(key=KEY) as played, closing(Client(Address(played.url))) as client:
        bodies = [chat_body("m", [Message("user", str(i))]) for i in range(40)]
        with pytest.raises(EndpointError, match="refuses the key"):
            dict(map_unordered(lambda i: chat(client, bodies[i]), range(40), 4, client.stop))
    assert len(played.asked) <= 4
