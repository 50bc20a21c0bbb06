from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.e2e.command import Command, records, write_jsonl
from tests.publish.hub_server import TOKEN, Hub, serve_hub

HOSTILE = 'x\n---\nlicense: mit\n---\n# <script>alert(1)</script> | `a` ``b`` [c](javascript:d) "e": {f: &g *h'


@pytest.fixture
def tithe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "small.jsonl", records(60))


@pytest.fixture
def run(tithe: Command, tmp_path: Path) -> Path:
    """The run folder of a selection of 6 of 30 records with two columns of their own, and a row that is no record."""
    (tmp_path / "home").mkdir()
    data = write_jsonl(tmp_path / "home" / "in.jsonl", [*records(30), "no record"])
    out = tmp_path / "kept.jsonl"
    tithe.ok("select", data, "-m", "pocket", "-s", "length", "-k", 6, "--drop", "length < 3", "-o", out)
    return tmp_path / "kept.tithe"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A hub on loopback, to which the client may connect with a token."""
    with serve_hub(Hub()) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield made


@pytest.fixture(autouse=True)
def no_token_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    """Whatever a test does, the token is in no log and in no file."""
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    caplog.set_level(logging.DEBUG, "httpx2")
    yield
    assert TOKEN not in caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def read_front(card: str) -> dict:
    import yaml

    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def lines(data: bytes) -> list:
    return [json.loads(line) for line in data.splitlines()]
