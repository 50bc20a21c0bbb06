"""Record what the commands print and write, and compare it after a change that should change nothing.

    python benchmarks/frozen.py record before.json     # on the tree as it is
    python benchmarks/frozen.py compare before.json    # on the changed one: says what differs; exit 1 if anything does

Everything runs with the bundled model and data set, in fp32 on the CPU. What a run cannot repeat is left out: times,
speeds, versions and the folder it ran in. `--answers FOLDER` at `record` keeps a run folder; at `compare` the same
command goes on in a copy of it, and may read nothing again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import tithe

CPU = "--device cpu --dtype fp32"
MODEL = f"--model pocket {CPU}"
TIERED = "--tier-column quality --high-tier good --low-tier mediocre,damaged"
COMMANDS = {
    "select": f"tithe select starter --limit 60 --scorer ifd {MODEL} --keep 10 -o kept.jsonl",
    "resume": f"tithe score starter --limit 60 --scorer ifd {MODEL} --run-dir before",
    "score": f"tithe score starter --limit 40 --scorer ifd,length,perplexity {MODEL} -o scores.parquet",
    "plan": "tithe plan starter --limit 60 --scorer ifd,perplexity --model pocket",
    "pipeline": f"tithe select starter --limit 60 {MODEL} --encoder tfidf "
    "--pipeline 'superfiltering:50% -> miwv:50% -> facility-location:5' -o staged.jsonl",
    "miwv": f"tithe select starter --limit 40 --scorer miwv --encoder tfidf {MODEL} --keep 10% -o near.jsonl",
    "head": f"tithe head train starter {TIERED} {MODEL} --test-share 0.3 -o head",
    "cpqs": f"tithe select starter --limit 60 --scorer cpqs --head head {MODEL} --keep 10 -o best.jsonl",
    "rds": f"tithe select starter --limit 40 --scorer rds --target kept.jsonl {MODEL} --keep 8 -o like.jsonl",
    "tiers": "tithe tiers import pairs.jsonl -o tiers.jsonl",
    "tune": f"tithe tune kept.jsonl --model pocket {CPU} --train-batch-size 4 --max-steps 2 -o tuned",
    "evaluate": f"tithe evaluate pocket --holdout kept.jsonl {CPU} -o results",
    "judge": "tithe judge tally reviews.jsonl",
    "experiment": "tithe experiment experiment.yaml -o trial --plan",
    "export": "tithe export kept.jsonl --to llamafactory",
}
EXPERIMENT = """dataset: starter
model: pocket
holdout: 30
budgets: [20%]
seeds: 3
recipe: alpaca
device: cpu
limit: 120
training: {train_batch_size: 8, max_steps: 2}
arms:
  superfiltering:
  random:
"""
PAIR = {"instruction": "Name a colour, number {i}.", "high": "Blue, like the sea {i}.", "low": "No {i}."}
REVIEW = {"id": "{i}", "scores": [7, 5], "scores_reverse": [5, 6]}
PASSING = {
    "second",
    "seconds",
    "checksum",
    "versions",
    "time",
    "machine",
    "memory",
    "speed",
    "trace",
    "started",
    "ended",
    "packages",
    "gflops",
}
SPEED = re.compile(r"\d[\d.,]*( ms| s| min| h| tokens/s| MB| GB| times as fast)\b")
PROGRESS = re.compile(r"^(?:[\w -]+: )*[\d,]+( of [\d,]+)? records(, .*tokens/s.*|, about .*)?\n", re.MULTILINE)
TABLES = {".jsonl", ".json", ".parquet", ".csv", ".md", ".yaml"}


def carry_out(command: str, folder: Path) -> dict[str, Any]:
    """Return exit code and output of a command, line by line, without what another run cannot repeat."""
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    program = f'tithe() {{ "{sys.executable}" -m tithe.cli "$@"; }}; '
    done = subprocess.run(
        ["bash", "-c", program + command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    out, told = (SPEED.sub("*", PROGRESS.sub("", placeless(text, folder))) for text in (done.stdout, done.stderr))
    return {"code": done.returncode, "out": out.splitlines(), "told": told.splitlines()}


def placeless(text: str, folder: Path) -> str:
    """Return the text without where the commands ran and where the package lies."""
    return text.replace(str(folder), "HERE").replace(str(Path(tithe.__file__).parent), "TITHE")


def steady(value: Any) -> Any:
    """Return the value without what another run cannot repeat."""
    if isinstance(value, dict):
        return {key: steady(one) for key, one in value.items() if not PASSING & set(re.split(r"[_ ]", key))}
    if isinstance(value, list):
        return [steady(one) for one in value]
    return SPEED.sub("*", value) if isinstance(value, str) else value


def content(path: Path, folder: Path) -> Any:
    """Return what a file says: a record's values, and a digest of anything longer."""
    if path.suffix == ".json":
        return json.loads(placeless(json.dumps(steady(json.loads(path.read_text()))), folder))
    if path.suffix == ".parquet":
        text = json.dumps(pq.read_table(path).to_pylist(), default=str)
    else:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    return hashlib.sha256(placeless(text, folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def files(folder: Path) -> dict[str, Any]:
    """Return what the commands wrote, save stored answers (a part ends when its time is over) and weights."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "answers" not in path.parts and "before" not in path.parts and path.suffix in TABLES:
            found[name] = content(path, folder)
    return found


def options() -> dict[str, list[str]]:
    """Return every option of every help page."""
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    pages = re.split(r"^## `(.+)`$", page, flags=re.MULTILINE)
    return {
        name: sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)))
        for name, text in zip(pages[1::2], pages[2::2], strict=True)
    }


def lines(record: dict[str, Any], times: int) -> str:
    return "".join(json.dumps(record).replace("{i}", str(i)) + "\n" for i in range(times))


def frozen(answers: Path | None) -> dict[str, Any]:
    """Carry out all commands in a fresh folder, and return what was said and written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "experiment.yaml").write_text(EXPERIMENT)
        (folder / "pairs.jsonl").write_text(lines(PAIR, 12))
        (folder / "reviews.jsonl").write_text(lines(REVIEW, 12))
        if answers is not None and answers.is_dir():
            shutil.copytree(answers, folder / "before")
        told = {}
        for what, command in COMMANDS.items():
            print(f"{what} ...", file=sys.stderr, flush=True)
            told[what] = carry_out(command, folder)
            if what == "select" and not (folder / "before").exists():
                shutil.copytree(folder / "kept.tithe", folder / "before")
                if answers is not None:
                    shutil.copytree(folder / "kept.tithe", answers)
        return {"told": told, "files": files(folder), "options": options()}


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Return each place in which two records differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{where}/{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = []
        for i, (one, other) in enumerate(zip(before, now, strict=True)):
            found += differences(one, other, f"{where}/{i}")
        return found
    return [] if before == now else [f"{where}\n  before: {json.dumps(before)}\n  now:    {json.dumps(now)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deed", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--answers", type=Path, help="a run folder, kept by `record` and gone on in by `compare`")
    given = parser.parse_args()
    now = frozen(given.answers)
    many = f"{len(now['told'])} commands, {len(now['files'])} files, {len(now['options'])} help pages"
    failed = [what for what, told in now["told"].items() if told["code"]]
    if given.deed == "record":
        given.file.write_text(json.dumps(now, indent=1) + "\n")
        print(f"recorded {many}; ended with an error: {', '.join(failed) or 'none'}")
        return
    found = differences(json.loads(given.file.read_text()), now)
    print("\n".join(found) or f"the same: {many}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
