"""What a selection of the starter set holds: labels of kept and dropped, what the gate dropped, the ends of the scale.

    python examples/show_demo.py demo/kept.jsonl

Reads the run folder beside the kept file.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Callable
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

    dropped = [row for row in table if row["ifd"] is None and row.get("sound") is not None]
    suspicious = sorted(dropped, key=lambda row: row["sound"])
    show("Dropped by the gate, the most suspicious of each kind first", first_of_each(suspicious), records, looks)
    scored = sorted((row for row in table if row["ifd"] is not None), key=lambda row: row["ifd"])
    fair = [row for row in scored if row["ifd"] <= 1]
    show("Highest scores up to 1", fair[-2:][::-1], records, ifd)
    show("Lowest scores", fair[:2], records, ifd)
    show("Above 1, dropped: the prompt makes the response less likely", scored[len(fair) :][-2:], records, ifd)


def first_of_each(rows: list[dict[str, Any]], most: int = 3) -> list[dict[str, Any]]:
    """Return the first row of each kind of damage."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["sound_looks_like"], row)
    return list(found.values())[:most]


def show(title: str, rows: list[dict[str, Any]], records: dict[int, dict[str, Any]], say: Callable[..., str]) -> None:
    if rows:
        print(f"\n{title}:")
    for row in rows:
        print(f"  {say(row)}")
        show_record(records[row["row"]])


def ifd(row: dict[str, Any]) -> str:
    return f"IFD {row['ifd']:.3f}"


def looks(row: dict[str, Any]) -> str:
    return f"looks like {row['sound_looks_like']} ({row['sound_looks_like_probability']:.2f}): {row['sound']:.1f}"


def show_record(record: dict[str, Any]) -> None:
    asked = " ".join(f"{record['instruction']} {record['input']}".split())
    damage = f": {record['damage']}" if record["damage"] else ""
    print(f"         {textwrap.shorten(asked, SHORT, placeholder=' ...')}")
    print(f"         -> {textwrap.shorten(record['output'], SHORT, placeholder=' ...')}")
    print(f"         ({record['quality']}{damage})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
