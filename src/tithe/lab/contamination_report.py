"""What a data set has in common with evaluation sets: as a file with every example hit, and as a person sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from tithe.contamination.overlap import MOSTLY, NGRAM, ContaminationResult, ItemSearch, find
from tithe.data.files import open_dataset
from tithe.report.reporter import Reporter, say_notes
from tithe.report.terminal import console, say
from tithe.run.folder import RECORD, account, check_places, is_broken_off, write_json
from tithe.run.source import named_dataset

MOST_MATCHES, LONGEST = 3, 120  # matches of a file, characters of a text
HOW = {"item": "the same as the whole item", "question": "the same as the item's question"}


def contamination(
    dataset: Path | str,
    against: Sequence[Path],
    *,
    n: int = NGRAM,
    format: str = "auto",
    reporter: Reporter | None = None,
) -> ContaminationResult:
    """Find what a data set and evaluation files have in common.

    An example is hit by an item if they share n words in a row. Of an item that has fewer words, or of its question
    if that has, the whole must be one of the example's messages, or all of them together.

    Args:
        dataset: file, folder or hub id.
        against: evaluation files.
        n: words in a row; 13 as in Brown et al. 2020, arXiv 2005.14165, appendix C.
        format: shape of the data set's records.
        reporter: who listens.

    Raises:
        TitheError: a file cannot be read, or nothing is given.
    """
    return find(open_dataset(named_dataset(str(dataset)), format=format), against, n=n, reporter=reporter)


def report(
    dataset: Path | str,
    against: Sequence[Path],
    *,
    n: int = NGRAM,
    format: str = "auto",
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ContaminationResult:
    """Find what a data set and evaluation files have in common, and write it as JSON with every example hit.

    Args:
        dataset: file, folder or hub id.
        against: evaluation files.
        n: words in a row.
        format: shape of the data set's records.
        output: where it goes, None for nowhere.
        overwrite: replace `output` if it is there.
        reporter: who listens.
    """
    reporter = reporter or Reporter()
    again = overwrite or (output is not None and is_broken_off(output))  # of which nothing is lost
    for source in (str(dataset), *map(str, against)):
        check_places(output, again, source, None)
    search = ItemSearch.of(open_dataset(named_dataset(str(dataset)), format=format), against, n)
    place, name = (None, RECORD) if output is None else (output.parent, output.name)
    with account(place, reporter, search.so_far, name=name, stores=None) as told:
        result = search.result(reporter)
        say_notes(reporter, search.dataset, result.record["counts"])
        result.record.update(told.finished())
        if output is not None:
            write_json(output, {**result.record, "examples": dict(result.examples)})
    return result


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
