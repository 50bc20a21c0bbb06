"""A plan says what the run will do, from the tokenizer alone, in bounded memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Command, child, records, write_jsonl

PEAK = 1.5e9  # bytes
# Not `getrusage`: a child's begins with the memory of the process that started it.
MEASURED = """
import atexit, sys
from pathlib import Path
from tithe import cli
atexit.register(lambda: print(Path("/proc/self/status").read_text(), file=sys.stderr))
cli.main()
"""
OURS = "import sys, tithe.run, tithe.report.terminal, tithe.api; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scorer", "ifd"],
        ["--scorer", "ifd,superfiltering,perplexity,length,random"],
        ["--preset", "cherry"],
        ["--scorer", "length"],
        ["--template", "alpaca", "--max-length", "90", "--eos"],
    ],
    ids=" ".join,
)
def test_a_plan_equals_the_run(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, arguments: list[str]
) -> None:
    planned = tithe.ok("plan", small, "--model", model_dir, *arguments, "--json").json
    done = tithe.ok("score", small, "--model", model_dir, *arguments, "--run-dir", tmp_path / "run", "--json").json
    for key in ("settings", "scorers", "template", "dataset"):
        assert planned[key] == done[key]
    for key in planned["counts"]:
        assert planned["counts"][key] == done["counts"][key], key
    assert done["work"]["passes_computed"] == sum(planned["counts"]["passes"].values())
    # What the prompts of a batch have in common is read once.
    assert done["work"]["tokens_read"] == planned["counts"]["forward_tokens"] - planned["shared_tokens"]
    assert (done["work"]["tokens_read"] > 0) == (planned["counts"]["forward_tokens"] > 0)


def test_a_plan_needs_no_weights_and_writes_nothing(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = tithe.ok("plan", small, "--model", model)
    assert done.out == "" and "forward passes, given" in done.err and "parameters" in done.err
    assert not list((tmp_path / "here").iterdir())


def test_our_own_modules_for_a_plan_import_no_torch() -> None:
    """Reading a tokenizer brings torch along where transformers wishes; we do not ask for it."""
    out, err = child(OURS, fresh=True).communicate()
    assert out == "False\n", err


@pytest.mark.slow
@pytest.mark.parametrize("rows", [20_000, pytest.param(200_000, marks=pytest.mark.thorough)])
def test_a_plan_of_many_rows_stays_small(model_dir: Path, tmp_path: Path, rows: int) -> None:
    data = tmp_path / "many.jsonl"
    made = records(400)
    with data.open("w") as stream:
        for i in range(rows):
            record = made[i % 400]
            stream.write(json.dumps({**record, "instruction": f"{record['instruction']} {i}"}) + "\n")
    command = ["plan", str(data), "--model", str(model_dir), "--no-time", "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB$", done.stderr, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    assert json.loads(done.stdout)["counts"]["examples"] == rows
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < PEAK


def test_two_plans_agree(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    """Equal records cost one pass of each kind."""
    once = write_jsonl(tmp_path / "once.jsonl", records(20))
    twice = write_jsonl(tmp_path / "twice.jsonl", records(20) * 2)
    one = tithe.ok("plan", once, "--model", model_dir, "--json").json["counts"]
    two = tithe.ok("plan", twice, "--model", model_dir, "--json").json["counts"]
    assert one["passes"] == two["passes"] and one["forward_tokens"] == two["forward_tokens"]
    assert (one["passes_asked"], two["passes_asked"]) == (40, 80)
