"""How large the code is, and how much of it one record goes through: hidden circles, files, lines, calls.

    python benchmarks/house.py

`tithe select --scorer ifd --model pocket` runs on 1, 300 and 500 records of the starter set, each in a process of its
own whose calls of Python functions in `src/tithe` are counted. What the last run has more than the second, divided by
200, is what each further record costs: the first 100 are also looked at to tell the file's shape. The counts are the
same from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tithe"
STARTER = SOURCE / "pocket" / "starter.jsonl"
FEW, MANY = 300, 500
OPTIONS = "--scorer ifd --model pocket --device cpu --dtype fp32 --max-length 512 --keep 1 --no-drop --overwrite"


def trace(data: Path) -> dict[str, int]:
    """Run one selection, and count the calls of Python functions in each file of the package, in all threads."""
    calls: Counter[str] = Counter()
    prefix = f"{SOURCE}{os.sep}"

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix) and code.co_name != "<module>":
            calls[code.co_filename.removeprefix(prefix)] += 1

    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from tithe import cli  # the libraries come first: importing them is slow while calls are counted

    sys.argv = ["tithe", "select", str(data), *OPTIONS.split(), "-o", str(data.with_name("kept.jsonl"))]
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return dict(calls)


def traced(records: int) -> Counter[str]:
    """Count the calls of one run on this many records, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        lines = STARTER.read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(lines[:records]), encoding="utf-8")
        out = Path(folder) / "calls.json"
        command = [sys.executable, __file__, "--trace", str(data), "--out", str(out)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return Counter(json.loads(out.read_text(encoding="utf-8")))


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def measure() -> dict[str, float]:
    """All numbers of this tree."""
    sys.path.insert(0, str(ROOT))
    from tests.test_architecture import circles

    files = sorted(SOURCE.rglob("*.py"))
    one, few, many = traced(1), traced(FEW), traced(MANY)
    further = {name: (many[name] - few[name]) / (MANY - FEW) for name in many}
    return {
        "hidden circles": len(circles(SOURCE)),
        "files in src/tithe/run": len(list((SOURCE / "run").rglob("*.py"))),
        "files in src": len(files),
        "lines in src": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "one record: files entered": len(one),
        "one record: calls": one.total(),
        "each further record: files entered": sum(calls >= 1 for calls in further.values()),
        "each further record: calls": sum(further.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trace:
        given.out.write_text(json.dumps(trace(given.trace)), encoding="utf-8")
        return
    for name, value in measure().items():
        print(f"{name:<36}{value:>10,.1f}".removesuffix(".0"))


if __name__ == "__main__":
    main()
