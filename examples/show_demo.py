"""What a selection of the starter set holds: labels of kept and dropped, and the ends of the scale.

    python examples/show_demo.py demo/kept.jsonl

Reads the run folder beside the kept file.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import tithe

LABELS = ("good", "mediocre", "damaged")
SHORT = 90  # characters of a prompt and of a response that are shown


def main(kept_file: Path) -> None:
    table = pq.read_table(kept_file.with_suffix(".tithe") / "scores.parquet").to_pylist()
    records = dict(tithe.load("starter").records())
    kept = Counter(record["quality"] for _, record in tithe.load(kept_file).records())
    everything = Counter(record["quality"] for record in records.values())

    print("\nThe labels that the starter set gives its responses:\n")
    print(f"{'':10}{'kept':>6}{'dropped':>9}{'share kept':>12}")
    for label in LABELS:
        share = kept[label] / everything[label]
        print(f"{label:10}{kept[label]:6}{everything[label] - kept[label]:9}{share:12.0%}")

    scored = sorted((row for row in table if row["ifd"] is not None), key=lambda row: row["ifd"])
    fair = [row for row in scored if row["ifd"] <= 1]
    show("Highest scores up to 1", fair[-2:][::-1], records)
    show("Lowest scores", fair[:2], records)
    show("Above 1, dropped: the prompt makes the response less likely", scored[len(fair) :][-2:], records)


def show(title: str, rows: list[dict[str, Any]], records: dict[int, dict[str, Any]]) -> None:
    if rows:
        print(f"\n{title}:")
    for row in rows:
        record = records[row["row"]]
        asked = " ".join(f"{record['instruction']} {record['input']}".split())
        damage = f": {record['damage']}" if record["damage"] else ""
        print(f"  {row['ifd']:.3f}  {textwrap.shorten(asked, SHORT, placeholder=' ...')}")
        print(f"         -> {textwrap.shorten(record['output'], SHORT, placeholder=' ...')}")
        print(f"         ({record['quality']}{damage})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
