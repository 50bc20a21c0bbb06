from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Command, records, write_jsonl


@pytest.fixture
def tithe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command; `tithe.ok(...)` and `tithe.fails(...)` also look at how it ended."""
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """60 Alpaca records with two columns of their own."""
    return write_jsonl(tmp_path / "small.jsonl", records(60))
