"""Plan a large file and say how long it took and how much memory; a million rows are to stay under 1.5 GB.

    python benchmarks/plan_memory.py --model FOLDER [--rows 1000000]

The rows are short Alpaca-like records, all different, written to a temporary folder. Measured on two cores with the
bundled tokenizer: 143 s and a peak of 0.60 GB for 1,000,000 rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "red green blue answer letter weather friend book rainbow colours thank sum twelve thirty".split()  # noqa: SIM905


def write_rows(path: Path, rows: int) -> None:
    """Records of 5 to 40 words."""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(rows):
            text = " ".join(WORDS[(i * 7 + j * j * 3) % len(WORDS)] for j in range(3 + i % 36))
            record = {"instruction": f"Write about {WORDS[i % len(WORDS)]}, number {i}.", "input": "", "output": text}
            stream.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a model with a fast tokenizer")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_rows(data, arguments.rows)
        command = [sys.executable, "-m", "tithe.cli", "plan", str(data), "--scorer", "ifd", "--model", arguments.model]
        began = time.monotonic()
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - began
        counts = json.loads(done.stdout)["counts"]
        size = data.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    print(f"{counts['examples']:,} rows, {size:,.0f} MB, {counts['forward_tokens']:,} tokens planned")
    print(f"{seconds:.0f} s, {arguments.rows / seconds:,.0f} rows/s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
