"""Report the text that a data set shares with evaluation files: as JSON with every example hit, and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from tithe.contamination.overlap import MOSTLY, NGRAM, ContaminationResult, ItemSearch, find
from tithe.data.dataset import open_dataset
from tithe.report.reporter import Reporter, say_notes
from tithe.report.terminal import console, say
from tithe.run.folder import RECORD, check_places, is_broken_off, recorded_run, write_json
from tithe.run.source import named_dataset

MOST_MATCHES, LONGEST = 3, 120  # matches shown per file, characters shown per text
HOW = {"item": "the same as the whole item", "question": "the same as the item's question"}


def contamination(
    dataset: Path | str,
    against: Sequence[Path],
    *,
    n: int = NGRAM,
    format: str = "auto",
    columns: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> ContaminationResult:
    """Find text that a data set shares with evaluation files.

    An item hits an example if they share n words in a row. An item, or a question, with fewer words hits an example if
    all of it equals one of the example's messages, or all messages together.

    Args:
        dataset: file, folder or hub id.
        against: evaluation files.
        n: words in a row; 13 as in Brown et al. 2020, arXiv 2005.14165, appendix C.
        format: shape of the data set's records.
        columns: the user's names of columns, as `role=column`.
        reporter: gets messages and progress.

    Raises:
        TitheError: a file cannot be read, or none is given.
    """
    found = open_dataset(named_dataset(str(dataset)), format=format, columns=columns)
    return find(found, against, n=n, reporter=reporter)


def report(
    dataset: Path | str,
    against: Sequence[Path],
    *,
    n: int = NGRAM,
    format: str = "auto",
    columns: Sequence[str] = (),
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ContaminationResult:
    """Find text that a data set shares with evaluation files, and write it as JSON with every example hit.

    Args:
        dataset: file, folder or hub id.
        against: evaluation files.
        n: words in a row.
        format: shape of the data set's records.
        columns: the user's names of columns, as `role=column`.
        output: file to write, if any.
        overwrite: replace `output` if it is there.
        reporter: gets messages and progress.
    """
    reporter = reporter or Reporter()
    again = overwrite or (output is not None and is_broken_off(output))  # an unfinished report may be replaced
    for source in (str(dataset), *map(str, against)):
        check_places(output, again, source, None)
    search = ItemSearch.of(open_dataset(named_dataset(str(dataset)), format=format, columns=columns), against, n)
    place, name = (None, RECORD) if output is None else (output.parent, output.name)
    with recorded_run(place, reporter, search.so_far, name=name, stores=None) as told:
        result = search.result(reporter)
        say_notes(reporter, search.dataset, result.record["counts"])
        result.record.update(told.finished())
        if output is not None:
            write_json(output, {**result.record, "examples": dict(result.examples)})
    return result


def show_contamination(result: ContaminationResult) -> None:
    """Print counts by evaluation file, and the worst matches with both places."""
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
        say(out, f"note: {data['bad_rows']:,} bad rows of {data['source']} were not searched")
        for reason, n in record["counts"]["bad_rows"].items():
            say(out, f"bad rows, {n:,}: {reason}")
    if short:
        have = "1 item has" if short == 1 else f"{short:,} items have"
        say(out, f"note: {have} fewer than {record['ngram']} words: only the same text as a whole counts")
    say(out, f"{record['examples_hit']:,} of {data['examples']:,} examples share text with an evaluation file")


def sentence(match: Mapping[str, Any]) -> str:
    """Return a match in words: both places, and the shared text."""
    text = match["text"] if len(match["text"]) <= LONGEST else match["text"][: LONGEST - 3] + "..."
    how = HOW.get(match["how"])
    if how is None:
        runs = "1 n-gram" if match["shared_ngrams"] == 1 else f"{match['shared_ngrams']:,} n-grams"
        how = f"{runs}, {100 * match['share_of_item']:.3g} % of the item, from"
    return f"{match['example']} and {match['item']}: {how}: {text}"
