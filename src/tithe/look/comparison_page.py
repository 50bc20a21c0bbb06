"""Write a comparison as one page: every record's rank in both rankings, the list, the tables, and the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tithe.data.outfile import atomic
from tithe.look.compared_pair import NO_VALUE, ComparedPair, Joined
from tithe.look.comparison_text import (
    ComparedRuns,
    correlation_words,
    counts_of,
    number,
    remarks,
    shift_words,
    top_cells,
)
from tithe.look.find_record import find_texts
from tithe.look.finished_run import FinishedRun
from tithe.look.page_data import MOST, parts_of, prompt_of, rounded
from tithe.look.rankings import Ranking
from tithe.look.write_page import render_data
from tithe.run.folder import check_places, inputs_of

Pairs = Sequence[tuple[Ranking, Ranking]]


def check_page(path: Path, overwrite: bool, runs: Sequence[FinishedRun]) -> None:
    """Refuse a place where a page would replace something that the runs read or wrote.

    Raises:
        OutputError: says which.
    """
    for run in runs:
        check_places(path, overwrite, run.settings.dataset, run.folder, inputs_of(run.settings))


def write_comparison(
    path: Path,
    result: ComparedRuns,
    pairs: Pairs,
    joined: Sequence[Joined],
    runs: Sequence[FinishedRun],
    categories: Mapping[str, str] | None,
    most: int = MOST,
) -> None:
    """Write the page; replaces one that is there.

    Args:
        path: of the page.
        result: the comparison.
        pairs: its rankings.
        joined: their common examples.
        runs: the runs.
        categories: id -> category; None without a column.
        most: records on the page; of more, those whose ranks differ most.
    """
    data = comparison_data(result, pairs, joined, runs, categories, most)
    text = render_data(data, str(data["title"]), "comparison")
    with atomic(path, overwrite=True) as stream:
        stream.write(text)


def comparison_data(
    result: ComparedRuns,
    pairs: Pairs,
    joined: Sequence[Joined],
    runs: Sequence[FinishedRun],
    categories: Mapping[str, str] | None,
    most: int,
) -> dict[str, Any]:
    """Return the data of the page."""
    ids, note = shown_ids(joined, most)
    texts, notes = find_texts(runs, ids)
    names = sorted({categories.get(id_, NO_VALUE) for id_ in ids}) if categories is not None else []
    place_of = {name: i for i, name in enumerate(names)}
    rankings = list(dict.fromkeys(one for pair in pairs for one in pair))
    rows = rows_of(pairs, ids)
    examples = [texts.get(id_) for id_ in ids]
    return {
        "title": " · ".join(dict.fromkeys(name for pair in result.pairs for name in pair.names)),
        "within": result.within or "",
        "categories": names,
        "category": [place_of[categories.get(id_, NO_VALUE)] for id_ in ids] if categories is not None else [],
        "id": ids,
        "row": [rows[id_][0] for id_ in ids],
        "turn": [rows[id_][1] for id_ in ids],
        "prompt": [[] if one is None else prompt_of(one) for one in examples],
        "response": [[] if one is None else parts_of(one.response) for one in examples],
        "rankings": [one.label for one in rankings],
        "scores": [scores_of(one, ids) for one in rankings],
        "pairs": [pair_data(pair, each, ids) for pair, each in zip(result.pairs, joined, strict=True)],
        "differs": [[name, *values] for name, values in result.differs.items()],
        "runs": [run_facts(run) for run in runs],
        "notes": [*([note] if note else []), *dict.fromkeys([*result.notes, *notes])],
    }


def shown_ids(joined: Sequence[Joined], most: int) -> tuple[list[str], str]:
    """Return the ids of the compared examples, and a sentence if there are too many for a page."""
    furthest: dict[str, float] = {}
    for each in joined:
        away = np.abs(each.ranks("a") - each.ranks("b")) / max(1, len(each.ids))
        for id_, value in zip(each.ids, away.tolist(), strict=True):
            furthest[id_] = max(value, furthest.get(id_, 0.0))
    if len(furthest) <= most:
        return list(furthest), ""
    chosen = set(sorted(furthest, key=lambda id_: -furthest[id_])[:most])
    note = (
        f"This page has {most:,} of {len(furthest):,} examples: those whose ranks differ most. The tables are of all."
    )
    return [id_ for id_ in furthest if id_ in chosen], note


def rows_of(pairs: Pairs, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return id -> row and turn, in the data set of the first run that has it."""
    wanted, found = set(ids), dict[str, tuple[int, int]]()
    for one in dict.fromkeys(one for pair in pairs for one in pair):
        columns = [one.run.examples.column(name).to_pylist() for name in ("row", "turn")]
        for id_, row, turn in zip(one.ids, *columns, strict=True):
            if id_ in wanted:
                found.setdefault(id_, (row, turn))
    return found


def scores_of(one: Ranking, ids: Sequence[str]) -> list[float | None]:
    """Return a ranking's score of each example, None for none."""
    values = dict(zip(one.ids, one.values.tolist(), strict=True))
    return rounded(np.array([values.get(id_, np.nan) for id_ in ids]))


def pair_data(pair: ComparedPair, joined: Joined, ids: Sequence[str]) -> dict[str, Any]:
    """Return what the page says about a pair."""
    ranks = []
    for which in ("a", "b"):
        there = dict(zip(joined.ids, joined.ranks(which).tolist(), strict=True))
        ranks.append([there.get(id_) for id_ in ids])
    return {
        "names": pair.names,
        "of": len(joined.ids),
        "ranks": ranks,
        "rank": number(pair.correlation.value),
        "counts": counts_of(pair),
        "correlation": f"Spearman rank correlation {correlation_words(pair.correlation)}",
        "tops": [[f"{one.percent} %", f"{one.size:,}", f"{one.shared:,}", *top_cells(one)] for one in pair.tops],
        "remarks": remarks(pair),
        "categories": [
            [one.value, f"{one.examples:,}", number(one.correlation), *map(str, one.tops), shift_words(one.shift)]
            for one in pair.categories
        ],
        "left": pair.categories_left_out,
    }


def run_facts(run: FinishedRun) -> list[str]:
    """Return a run's folder, model, data set, examples and version."""
    model = run.reading.get("model") or {}
    version = run.record.get("versions", {}).get("tithe", "-")
    source = str(run.record["dataset"].get("source"))
    return [str(run.folder), str(model.get("name", "-")), source, f"{len(run.examples):,}", str(version)]
