"""What a person sees of contamination, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table as Grid

from tithe.run.contamination import MOSTLY, ContaminationResult
from tithe.run.screen import console, say

MOST_MATCHES, LONGEST = 3, 120  # matches of a file, characters of a text
HOW = {"item": "the same as the whole item", "question": "the same as the item's question"}


def show_contamination(result: ContaminationResult) -> None:
    """Counts by evaluation file, and the worst matches with both places."""
    out, record = console(), result.record
    grid = Grid("", "items", "shorter", "items hit", f"by {MOSTLY:.0%}", "examples hit", box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify = "right"
    names = ("items", "items_shorter_than_ngram", "items_hit", "items_mostly_covered", "examples_hit")
    for name, one in record["against"].items():
        grid.add_row(name, *(f"{one[key]:,}" for key in names))
    out.print(grid)
    for name, one in record["against"].items():
        for match in one["worst"][:MOST_MATCHES]:
            say(out, f"{name}: {sentence(match)}")
    data, short = record["dataset"], sum(one["items_shorter_than_ngram"] for one in record["against"].values())
    if data["bad_rows"]:
        say(out, f"note: {data['bad_rows']:,} bad rows of {data['source']} were not looked at")
        for reason, n in record["counts"]["bad_rows"].items():
            say(out, f"bad rows, {n:,}: {reason}")
    if short:
        have = "1 item has" if short == 1 else f"{short:,} items have"
        say(out, f"note: {have} fewer than {record['ngram']} words: only the same text as a whole counts")
    say(out, f"{record['examples_hit']:,} of {data['examples']:,} examples share text with an evaluation file")


def sentence(match: Mapping[str, Any]) -> str:
    """Both places, and what stands in both."""
    text = match["text"] if len(match["text"]) <= LONGEST else match["text"][: LONGEST - 3] + "..."
    how = HOW.get(match["how"])
    if how is None:
        runs = "1 n-gram" if match["shared_ngrams"] == 1 else f"{match['shared_ngrams']:,} n-grams"
        how = f"{runs}, {100 * match['share_of_item']:.3g} % of the item, from"
    return f"{match['example']} and {match['item']}: {how}: {text}"
