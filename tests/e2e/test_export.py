"""A kept file for somebody else's trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import Command, read_jsonl


def test_records_in_another_shape(tithe: Command, small: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.jsonl"
    done = tithe.ok("export", small, "--to", "messages", "-o", output)
    assert done.out == "" and f"written: {output}, 60 records" in done.err
    first = read_jsonl(output)[0]
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"] and first["n"] == 0
    assert "exists" in tithe.fails("export", small, "--to", "messages", "-o", output).err
    tithe.ok("export", small, "--to", "messages", "-o", output, "--overwrite")
    assert "itself" in tithe.fails("export", small, "--to", "messages", "-o", small, "--overwrite").err


@pytest.mark.parametrize("trainer", ["axolotl", "trl"])
def test_a_snippet_goes_to_stdout_or_to_a_file(tithe: Command, small: Path, tmp_path: Path, trainer: str) -> None:
    printed = tithe.ok("export", small, "--to", trainer).out
    assert str(small) in printed
    done = tithe.ok("export", small, "--to", trainer, "-o", tmp_path / "snippet")
    assert done.out == "" and (tmp_path / "snippet").read_text().strip() == printed.strip()


def test_an_entry_for_llama_factory(tithe: Command, small: Path) -> None:
    tithe.ok("export", small, "--to", "llamafactory")
    tithe.ok("export", small, "--to", "llamafactory")
    entries = json.loads(small.with_name("dataset_info.json").read_text())
    assert entries["small"]["file_name"] == "small.jsonl"


def test_no_such_trainer(tithe: Command, small: Path) -> None:
    assert "`messages`" in tithe.fails("export", small, "--to", "mesages").err
    assert "-o" in tithe.fails("export", small, "--to", "messages").err
