"""Gather what the page of a run shows: scores, texts, reasons, token likelihoods, and how far scorers agree."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError
from tithe.look.agreement import agreements
from tithe.look.finished_run import DROPPED_COLUMN, FinishedRun, is_number, read_table
from tithe.look.token_losses import TokenLosses
from tithe.records import Example, FloatArray, Message, without_number

if TYPE_CHECKING:
    import pyarrow as pa

MOST = 20_000  # records on a page; of more, a sample
MOST_REASONS = 40  # in the list of reasons
LONGEST = 20_000  # characters of a text
COLUMN = 200  # characters of another column's value
DIGITS = 4
REST = "for another reason"
NEIGHBOURS = "neighbours.parquet"


@dataclass(frozen=True)
class Places:
    """Which examples a page shows.

    Args:
        table: the score table, without bad rows.
        reasons: (examples,) why each is dropped, without numbers; None for a kept one.
        shown: (shown,) places in the table, ascending.
    """

    table: pa.Table
    reasons: Sequence[str | None]
    shown: npt.NDArray[np.int64]

    def first(self, count: int) -> set[str]:
        """Return the ids of some that are shown: kept ones first, and then by a hash of the id."""
        ids = self.table.column("id").to_pylist()
        ranked = sorted(self.shown.tolist(), key=lambda i: (self.reasons[i] is not None, hash_of(ids[i])))
        return {ids[i] for i in ranked[:count]}


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Args:
        data: everything, ready for JSON.
        records: how many are on it.
        of: how many examples the run has.
        tokens: for how many of them it has token likelihoods.
    """

    data: Mapping[str, Any]
    records: int
    of: int
    tokens: int


def shown_places(run: FinishedRun, most: int = MOST) -> Places:
    """Return all examples; of more than `most`, all kept ones, and a sample of the rest with each reason's share."""
    table = run.examples
    full = table.column(DROPPED_COLUMN).to_pylist() if run.selects else [None] * len(table)
    reasons = [None if why is None else without_number(why) for why in full]
    everything = np.arange(len(table))
    if len(table) <= most:
        return Places(table, reasons, everything)
    ids = table.column("id").to_pylist()
    strata: dict[str | None, list[int]] = {}
    for i, why in enumerate(reasons):
        strata.setdefault(why, []).append(i)
    chosen = strata.pop(None) if run.selects and None in strata else []
    left, total = max(0, most - len(chosen)), sum(map(len, strata.values()))
    for places in strata.values():
        share = max(1, left * len(places) // total)
        chosen = chosen + sorted(places, key=lambda i: hash_of(ids[i]))[:share]
    return Places(table, reasons, np.sort(np.array(chosen, dtype=np.int64)))


def hash_of(id_: str) -> bytes:
    """Return a number by which records are drawn, whatever their order in the file."""
    return hashlib.blake2b(id_.encode(), digest_size=8).digest()


def gather(run: FinishedRun, places: Places, losses: TokenLosses) -> Page:
    """Gather the data of a page.

    Args:
        run: the run.
        places: the examples that it shows.
        losses: token likelihoods, perhaps of no record.

    Raises:
        TitheError: there are no scores, or the data set cannot be read or has changed.
    """
    table, shown = places.table, places.shown.tolist()
    scores = {name: floats(table, name) for name in run.scorers}
    if not any((~np.isnan(values)).any() for values in scores.values()):
        raise DataError(f"the run in `{run.folder}` has no scores to show")
    kept = sum(why is None for why in places.reasons)
    reasons, why, counts = numbered(places.reasons)
    some = table.take(places.shown)
    full = some.column(DROPPED_COLUMN).to_pylist() if run.selects else [None] * len(some)
    texts = texts_of(run, some)
    ids = some.column("id").to_pylist()
    top = max(1, kept) if run.selects else max(1, len(table) // 20)
    data = {
        "title": title_of(run),
        "facts": facts_of(run, len(table), kept),
        "note": note_of(len(shown), len(table), kept, run.selects),
        "selects": run.selects,
        "scorers": list(scores),
        "id": ids,
        "row": some.column("row").to_pylist(),
        "turn": some.column("turn").to_pylist(),
        "tokens": some.column("response_tokens").to_pylist(),
        "scores": [rounded(values[places.shown]) for values in scores.values()],
        "more": more_of(some, scores),
        "why": [why[i] for i in shown],
        "full": {n: full[n] for n, i in enumerate(shown) if full[n] != places.reasons[i]},
        "reasons": reasons,
        "counts": counts,
        "prompt": [prompt_of(one) for one in texts],
        "response": [parts_of(one.response) for one in texts],
        "columns": [columns_of(one) for one in texts],
        "losses": {id_: losses.view(id_) for id_ in ids if id_ in losses.rows},
        "shots": worked_examples(run, set(ids)),
        "top": top,
        "agreement": [
            [(round(one.overlap, DIGITS), one.correlation and round(one.correlation, DIGITS), one.both) for one in row]
            for row in agreements(scores, top)
        ],
    }
    return Page(data, len(shown), len(table), len(data["losses"]))


def worked_examples(run: FinishedRun, ids: set[str]) -> dict[str, list[str]]:
    """Return id -> ids of the examples that were shown before it, the nearest first, if a scorer did so."""
    path = run.folder / NEIGHBOURS
    if not path.is_file():
        return {}
    found: dict[str, list[tuple[int, str]]] = {}
    for row in read_table(path).to_pylist():
        if row["id"] in ids:
            found.setdefault(row["id"], []).append((row["rank"], row["neighbour"]))
    return {id_: [other for _, other in sorted(each)] for id_, each in found.items()}


def floats(table: pa.Table, name: str) -> FloatArray:
    found: FloatArray = table.column(name).cast("float64").to_numpy()
    return np.asarray(found, dtype=np.float64)


def rounded(values: FloatArray) -> list[float | None]:
    """Round for the page; None where there is no value, as JSON knows no NaN."""
    return [round(value, DIGITS) if np.isfinite(value) else None for value in values.tolist()]


def numbered(reasons: Sequence[str | None]) -> tuple[list[str], list[int], list[int]]:
    """Number the reasons, the commonest first after `kept`, which is 0.

    Returns:
        The reasons, the number of each example's, and how many examples each has.
    """
    counted = Counter(why for why in reasons if why is not None)
    names = [why for why, _ in counted.most_common(MOST_REASONS)]
    number: dict[str | None, int] = {None: 0, **{why: i for i, why in enumerate(names, 1)}}
    rest = len(names) + 1
    found = [number.get(why, rest) for why in reasons]
    names = ["kept", *names, *([REST] if rest in found else [])]
    there = Counter(found)
    return names, found, [there[i] for i in range(len(names))]


def texts_of(run: FinishedRun, some: pa.Table) -> list[Example]:
    """Return the examples of these rows of the score table, read from the data set in one pass."""
    names = ("id", "row", "turn")
    places: dict[int, set[int]] = {}
    for _, row, turn in zip(*(some.column(name).to_pylist() for name in names), strict=True):
        places.setdefault(row, set()).add(turn)
    found = {item.id: item for item in run.source.part(places).dataset if isinstance(item, Example)}
    run.source.input_check.check()
    ids = some.column("id").to_pylist()
    missing = sum(id_ not in found for id_ in ids)
    if missing:
        raise DataError(f"{missing:,} of {len(ids):,} scored examples are not in `{run.source.dataset.source}`")
    return [found[id_] for id_ in ids]


def prompt_of(example: Example) -> list[tuple[str, str]]:
    """Return a name and a text for everything before the response: tools, and the parts of each message."""
    tools = [("tools", clipped(as_json(list(example.tools))))] if example.tools else []
    return [*tools, *(part for message in example.prompt for part in parts_of(message))]


def parts_of(message: Message) -> list[tuple[str, str]]:
    """Return a name and a text for each part of a message: its thinking, its content, and the tools that it calls."""
    role = message.role if message.name is None else f"{message.role} {message.name}"
    found = [] if message.reasoning is None else [(f"{role}: thinking", clipped(message.reasoning))]
    if message.content or not message.tool_calls:
        found.append((role, clipped(message.content)))
    if message.tool_calls:
        found.append((f"{role}: calls", clipped(as_json([dict(call) for call in message.tool_calls]))))
    return found


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def clipped(text: str) -> str:
    """Cut a very long text, and say so."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [… {len(text) - LONGEST:,} more characters]"


def columns_of(example: Example) -> dict[str, str]:
    """Return the other columns of a record that fit on a line."""
    return {
        name: str(value)[:COLUMN]
        for name, value in example.columns.items()
        if isinstance(value, str | int | float | bool)
    }


def more_of(some: pa.Table, scores: Mapping[str, FloatArray]) -> list[tuple[str, list[Any]]]:
    """Return the further columns of the score table that have values: likelihoods, token counts, problems."""
    found = []
    for name in some.column_names:
        if name in scores or name in ("id", "row", "turn", "response_tokens", DROPPED_COLUMN):
            continue
        column = some.column(name)
        if column.null_count == len(column):
            continue
        values = rounded(floats(some, name)) if is_number(some, name) else column.to_pylist()
        if name in ("truncated", "shot_tokens_cut") and not any(values):
            continue
        found.append((name, values))
    return found


def title_of(run: FinishedRun) -> str:
    """Return the data set's and the model's name."""
    names = [str(run.record["dataset"]["source"]).rstrip("/").rpartition("/")[2]]
    model = run.reading.get("model", {})
    if model.get("name"):
        names.append(str(model["name"]).rstrip("/").rpartition("/")[2])
    return " · ".join(names)


def facts_of(run: FinishedRun, examples: int, kept: int) -> list[tuple[str, str]]:
    """Return what the run did, line by line."""
    record, settings = run.record, run.record["settings"]
    model, template = run.reading.get("model", {}), run.reading.get("template") or {}
    counts = record.get("counts") or {}
    found = [
        ("data set", str(record["dataset"]["source"])),
        ("records", f"{counts.get('records', examples):,}"),
        ("examples", f"{examples:,}"),
        ("bad rows", f"{sum((counts.get('bad_rows') or {}).values()):,}"),
        *([("kept", f"{kept:,}")] if run.selects else []),
        ("model", str(model.get("name", "none"))),
        ("template", str(template.get("template", "none"))),
        ("scorers", ", ".join(run.scorers)),
    ]
    shown = ("pipeline", "gate", "selector", "keep", "max_length", "drop", "seed")
    found += [(name, str(settings[name])) for name in shown if settings.get(name) not in (None, [], "", False)]
    version = record.get("versions", {}).get("tithe")
    return [*found, *([("tithe", str(version))] if version else []), ("run folder", str(run.folder))]


def note_of(shown: int, of: int, kept: int, selects: bool) -> str:
    """Return the sentence on a sample, or an empty one."""
    if shown == of:
        return ""
    dropped = f"all {kept:,} that were kept, and a sample of the dropped ones, each reason with its share"
    what = dropped if selects else "a sample"
    return f"This page has {shown:,} of {of:,} examples: {what}. Counts and agreement are of all."
