"""Select from the bundled starter set, and show what a person can judge: what goes, what stays, and why.

    python examples/demo.py FOLDER [MODEL]

MODEL is what `--model` takes. Without it `fetch_model.py` looks for SmolLM2-135M-Instruct, and takes the bundled
`pocket` where that cannot be had. The starter set has labels of its own, which no command reads.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fetch_model import find

import tithe
from tithe import cli

LABELS = ("good", "mediocre", "damaged")
SHORT = 90  # characters of a prompt and of a response that are shown
# What a real model reads on two cores without bf16 units while one waits: 50 prompts with three responses each.
RECORDS = 120
SMALL = ("--limit", str(RECORDS), "--max-length", "192")
KEEP = "10%"

Row = dict[str, Any]


def main(folder: Path, model: str) -> None:
    how = ("starter", "--scorer", "ifd", "--model", model, "--device", "cpu", "--dtype", "fp32", "--keep", KEEP)
    how += () if model == "pocket" else SMALL
    gate = "50%" if model == "pocket" else f"sound(records={RECORDS}):50%"
    run("select", *how, "--gate", gate, "-o", folder / "kept.jsonl", "--overwrite")
    # The gate's passes are used again: only what IFD reads of the records that the gate dropped is new.
    alone = (*how, "--answers", folder / "kept.tithe", "-o", folder / "alone.jsonl", "--overwrite", "--no-gate-check")
    run("select", *alone, quiet=True)

    behind, ungated = (
        pq.read_table(folder / f"{name}.tithe" / "scores.parquet").to_pylist() for name in ("kept", "alone")
    )
    records = dict(tithe.load("starter", limit=len(behind)).records())
    gone = [row for row in behind if (row["dropped"] or "").startswith("gate")]
    print(f"\nThe labels of the {len(records)} responses, which no command has read:\n")
    print(f"{'':34}" + "".join(f"{label:>10}" for label in LABELS))
    count("all", [row["row"] for row in behind], records)
    count("dropped by the gate", [row["row"] for row in gone], records)
    count("kept by IFD alone", kept(ungated), records)
    count("kept by IFD behind the gate", kept(behind), records)

    suspicious = sorted((row for row in gone if row["sound"] is not None), key=lambda row: row["sound"])
    print("\nDropped by the gate, the most suspicious of each kind first:")
    for row in first_of_each(suspicious):
        show(f"looks like {row['sound_looks_like']} ({row['sound_looks_like_probability']:.2f})", records[row["row"]])
    best = sorted((row for row in behind if row["dropped"] is None), key=lambda row: -row["ifd"])
    print("\nKept: hard for the model even with the prompt (IFD near 1 says that the prompt helps little):")
    for row in best[:3]:
        show(f"IFD {row['ifd']:.3f}", records[row["row"]])
    run("show", *how[:9], *(() if model == "pocket" else SMALL[2:]), "--row", best[0]["row"])
    run("look", folder / "kept.tithe", "--overwrite")


def run(command: str, *arguments: object, quiet: bool = False) -> None:
    """Print a command of tithe and run it."""
    words = [command, *map(str, arguments)]
    print(f"\n$ tithe {shlex.join(words).replace(str(Path.home()), '~')}", flush=True)
    sys.argv = ["tithe", *words]  # in this process, which has imported torch once
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere if quiet else sys.stderr):
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise
    sys.stdout.flush()


def kept(table: Sequence[Row]) -> list[int]:
    return [row["row"] for row in table if row["dropped"] is None]


def count(what: str, rows: Sequence[int], records: dict[int, Row]) -> None:
    found = Counter(records[row]["quality"] for row in rows)
    print(f"{what:34}" + "".join(f"{found[label]:10}" for label in LABELS))


def first_of_each(rows: Sequence[Row], most: int = 3) -> list[Row]:
    """Return the first row of each kind of damage."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["sound_looks_like"], row)
    return list(found.values())[:most]


def show(why: str, record: Row) -> None:
    asked = " ".join(f"{record['instruction']} {record['input']}".split())
    damage = f": {record['damage']}" if record["damage"] else ""
    print(f"  {why}, labelled {record['quality']}{damage}")
    print(f"         {textwrap.shorten(asked, SHORT, placeholder=' ...')}")
    print(f"         -> {textwrap.shorten(record['output'], SHORT, placeholder=' ...')}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else find())
