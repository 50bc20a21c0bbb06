"""Two scores of one data set side by side: do they choose the same records, and what do they seem to like?

    tithe score dolly.jsonl --scorer ifd,miwv --model M -o scores.parquet
    python examples/compare_scores.py dolly.jsonl scores.parquet ifd miwv --by category --plot compare.png

Prints Markdown. The plot needs `altair` and `vl-convert-python`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

import tithe

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ENDS = 10  # records shown from either end of a score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("scores", type=Path)
    parser.add_argument("scorers", nargs=2)
    parser.add_argument("--share", type=float, default=0.05, help="top share that is compared")
    parser.add_argument("--by", help="a column of the data, to count kept records by")
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--drop-above", type=float, default=1.0, help="the first score's records above this are left out"
    )
    parser.add_argument("--show", action="store_true", help="print the records at the ends, for your eyes")
    args = parser.parse_args()
    rows = [
        row for row in pq.read_table(args.scores).to_pylist() if all(row[name] is not None for name in args.scorers)
    ]
    values = {name: np.array([row[name] for row in rows]) for name in args.scorers}
    first, second = args.scorers
    allowed = values[first] <= args.drop_above
    count = int(args.share * len(rows))
    kept = {first: top(values[first], count, allowed), second: top(values[second], count)}
    records = dict(tithe.load(args.data).records())

    print(f"{len(rows):,} records with both scores; the top {args.share:.0%} are {count:,}.\n")
    print(f"- {first} above {args.drop_above:g}, left out of its selection: {int((~allowed).sum()):,}")
    overlap = len(kept[first] & kept[second])
    print(f"- kept by both: {overlap:,} ({overlap / count:.1%}; {args.share:.1%} would be chance)")
    print(f"- Spearman rank correlation: {spearmanr(values[first], values[second]).statistic:.3f}")
    lengths = np.array([row["response_tokens"] for row in rows])
    for name in args.scorers:
        print(f"- Spearman of {name} with response length: {spearmanr(values[name], lengths).statistic:.3f}")
    print()
    show_lengths(lengths, {"pool": set(range(len(rows))), **kept})
    if args.by:
        labels = [str(records[row["row"]].get(args.by)) for row in rows]
        show_shares(labels, {"pool": set(range(len(rows))), **kept}, args.by)
    for name in args.scorers:
        show_ends(name, values[name], rows, records, args)
    if args.plot:
        plot(values, lengths, args.plot)


def top(values: Any, count: int, allowed: Any = None) -> set[int]:
    """Places of the highest values, of equal ones the first."""
    order = np.argsort(-values, kind="stable")
    return set(order[allowed[order]][:count].tolist() if allowed is not None else order[:count].tolist())


def show_lengths(lengths: Any, groups: Mapping[str, set[int]]) -> None:
    print("| response tokens | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |")
    print("|---" * (len(QUANTILES) + 1) + "|")
    for name, places in groups.items():
        cells = np.quantile(lengths[sorted(places)], QUANTILES)
        print(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    print()


def show_shares(labels: Sequence[str], groups: Mapping[str, set[int]], by: str) -> None:
    print(f"| {by} | " + " | ".join(groups) + " |")
    print("|---" * (len(groups) + 1) + "|")
    counts = {name: Counter(labels[i] for i in places) for name, places in groups.items()}
    for label, _ in counts["pool"].most_common():
        print(f"| {label} | " + " | ".join(f"{counts[n][label] / len(groups[n]):.1%}" for n in groups) + " |")
    print()


def show_ends(
    name: str, values: Any, rows: Sequence[Any], records: Mapping[int, Any], args: argparse.Namespace
) -> None:
    order = np.argsort(-values, kind="stable")
    for what, places in ((f"highest {name}", order[:ENDS]), (f"lowest {name}", order[::-1][:ENDS])):
        print(f"**{what}**: " + ", ".join(f"{rows[i]['row']} ({values[i]:.3g})" for i in places) + "\n")
        for i in places if args.show else ():
            record = records[rows[i]["row"]]
            short = {key: str(value)[:160] for key, value in record.items()}
            print(f"    {rows[i]['row']}  {values[i]:.3f}  {rows[i]['response_tokens']} tokens  {short}")
        print()


def plot(values: Mapping[str, Any], lengths: Any, path: Path) -> None:
    """One score against the other, response length as colour; the outermost 1 % of each are out of the picture."""
    import altair as alt

    (x, first), (y, second) = values.items()
    (left, right), (low, high) = (np.quantile(each, (0.005, 0.995)) for each in (first, second))
    inside = np.flatnonzero((first >= left) & (first <= right) & (second >= low) & (second <= high))
    points = np.random.default_rng(0).permutation(inside)[:4000]
    data = [{x: float(first[i]), y: float(second[i]), "response tokens": int(lengths[i])} for i in points]
    scale = alt.Scale(type="log", scheme="viridis")
    chart = alt.Chart(alt.Data(values=data)).mark_circle(size=8, opacity=0.6)
    chart = chart.encode(
        x=alt.X(f"{x}:Q", scale=alt.Scale(zero=False)),
        y=alt.Y(f"{y}:Q", scale=alt.Scale(zero=False)),
        color=alt.Color("response tokens:Q", scale=scale),
    )
    chart.properties(width=520, height=360).save(str(path), scale_factor=1.5 if path.suffix == ".png" else 1)


if __name__ == "__main__":
    main()
