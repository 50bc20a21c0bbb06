"""A key that a server gives back, in whatever form and place, is in nothing that we say, keep or log."""

from __future__ import annotations

import base64
import html
import json
import logging
import traceback
from contextlib import closing
from urllib.parse import quote

import pytest

from tests.lab.endpoint.raw import answer, serve_raw
from tests.lab.endpoint.server import reply
from tithe.errors import TitheError
from tithe.lab.endpoint import client as module
from tithe.lab.endpoint.address import HIDDEN, Address, hide, scrub, secrets
from tithe.lab.endpoint.chat_api import Reply, chat, chat_body
from tithe.lab.endpoint.client import Client
from tithe.records import Message, Problem

KEY = "sk-Very/secret+\"k\\ey'<&>-1234567890"
BODY = chat_body("m", [Message("user", "hello")])
FORMS = {
    "as it is": KEY,
    "in capitals": KEY.upper(),
    "JSON": json.dumps(KEY)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(KEY)),
    "URL": quote(KEY, safe=""),
    "path of a URL": quote(KEY),
    "small digits": quote(KEY, safe="").lower(),
    "HTML": html.escape(KEY),
    "hexadecimal": KEY.encode().hex(),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of a name and it": base64.b64encode(f"me:{KEY}\n".encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(f"u:{KEY}?".encode()).decode(),
    "its beginning": KEY[:14] + "...",
    "its end": "*****" + KEY[-12:],
    "twice": KEY + KEY,
    "far behind": "x" * 195 + KEY,
    "at the end of what is looked at": "x y " * 990 + KEY,
}


def told(text: str) -> bool:
    """Whether eight characters in a row of any form are in a text."""
    plain = [KEY, quote(KEY, safe=""), KEY.encode().hex(), base64.b64encode(KEY.encode()).decode(), json.dumps(KEY)]
    plain += [base64.b64encode(b"x" * n + KEY.encode()).decode()[4:-4] for n in (1, 2)]
    pieces = {form[i : i + 8].lower() for form in plain for i in range(len(form) - 7)}
    return any(text[i : i + 8].lower() in pieces for i in range(len(text) - 7))


def raw(status: str, words: str, where: str) -> bytes:
    """An answer that has the words in one place."""
    if where == "phrase":
        return answer(b"", f"{status} {words}")
    if where == "location":
        return answer(b"", f"{status} No", Location=f"http://h/?k={words}", WWW_Authenticate=words, Set_Cookie=words)
    if where == "packing":
        return answer(b"x", f"{status} No", Content_Encoding=words)
    body = words if where == "text" else json.dumps({"error": {"message": words}})
    return answer(body.encode(), f"{status} No")


@pytest.mark.parametrize("where", ["phrase", "location", "packing", "text", "json"])
def test_a_key_that_comes_back_is_not_said(where, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TITHE_API_KEY", KEY)
    monkeypatch.setattr(module, "GIVE_UP", 1000)
    sent = [raw(status, form, where) for status in ("200", "302", "400", "401", "500") for form in FORMS.values()]
    with (
        serve_raw(lambda connection, number, request: connection.sendall(sent[number])) as url,
        closing(Client(Address(url), retries=0)) as client,
    ):
        for _ in sent:
            try:
                got = chat(client, BODY)
            except TitheError as error:
                said = "".join(traceback.format_exception(error)) + str(error.hint) + repr(error.__context__)
            else:
                assert isinstance(got, Problem)
                said = got.reason
            assert not told(said), said
    assert not told(caplog.text) and "HTTP/1.1" in caplog.text


def test_the_test_tells_a_key():
    assert all(told(form) for form in FORMS.values())


@pytest.mark.parametrize("form", ["as it is", "JSON", "URL", "base64 of a header", "hexadecimal"])
def test_an_answer_that_repeats_the_key_is_kept_without_it(form, monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", KEY)
    sent = answer(json.dumps(reply(f"your key is {FORMS[form]} indeed")).encode())
    with (
        serve_raw(lambda connection, number, request: connection.sendall(sent)) as url,
        closing(Client(Address(url))) as client,
    ):
        got = chat(client, BODY)
    assert isinstance(got, Reply) and HIDDEN in got.text and got.text.startswith("your key is ")
    assert KEY not in got.text and FORMS[form] not in got.text


def test_a_key_that_is_a_word_changes_no_answer(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", "EMPTY")
    assert scrub("the set is EMPTY, so empty", secrets()) == "the set is EMPTY, so empty"
    assert hide("the key EMPTY is wrong, not EMPTYING", secrets()) == f"the key {HIDDEN} is wrong, not EMPTYING"


def test_all_secrets_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("TITHE_API_KEY", "first-key-123456")
    monkeypatch.setenv("OTHER_KEY", "other-key-654321")
    monkeypatch.setenv("HF_TOKEN", "hf_third-key-777")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%2Dword-of-it@proxy:1")
    words = Address("http://h/v1", "OTHER_KEY").clean(
        "first-key-123456 other-key-654321 hf_third-key-777 pass%2Dword-of-it pass-word-of-it the rest"
    )
    assert words == f"{' '.join([HIDDEN] * 5)} the rest"


def test_words_beside_a_secret_stay():
    assert hide("no model `a`: sk-1234567890abc, ask sk-1234567890abc", ["sk-1234567890abc"]) == (
        f"no model `a`: {HIDDEN}, ask {HIDDEN}"
    )
    assert hide("nothing here", ["sk-1234567890abc"]) == hide("nothing here", []) == "nothing here"
