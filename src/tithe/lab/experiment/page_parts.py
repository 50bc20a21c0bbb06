"""Parts of the page that show what was trained: caveats, losses, and records that each arm chose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tithe.lab.evaluate.verdict import Comparison
from tithe.lab.experiment.cells import CELLS, TRAIN, Outcome
from tithe.lab.experiment.outcome import ExperimentResult
from tithe.lab.experiment.screen import cautions
from tithe.report.page import Part

SHOWN = 3  # records of an arm
LONGEST = 300  # characters of a record


def caveats(result: ExperimentResult) -> Part:
    """What limits the verdicts, all that the screen says too."""
    lines = list(cautions(result.record))
    seeds = len(result.record["settings"]["seeds"])
    lines += [] if result.results is None else unmeasured(result.results.against)
    lines.append(f"these verdicts are of {seeds} seeds, of this model, data and recipe.")
    return Part("Before you believe it", verdicts=[("", line) for line in lines])


def unmeasured(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Say of how many items the verdicts are, metric by metric, and how many have no value."""
    for metric in dict.fromkeys(one.metric for one in comparisons):
        own = [one for one in comparisons if one.metric == metric]
        items, left_out = min(one.items for one in own), max(one.left_out for one in own)
        yield f"{metric} is compared on {items:,} items" + (
            f"; {left_out:,} of those measured have no value in some run, and are in no comparison" if left_out else ""
        )


def training(outcomes: Sequence[Outcome]) -> Part:
    """Examples, steps and loss of every training."""
    rows = [["arm", "budget", "seed", "steps", "loss, first step", "loss, last step", "seconds"]]
    for one in outcomes:
        done: Mapping[str, Any] | None = one.record["training"]
        if done is None:
            continue
        losses = (f"{done['first_loss']:.4f}", f"{done['last_loss']:.4f}")
        cell = one.cell
        rows.append(
            [cell.arm, str(cell.budget), str(cell.seed), f"{done['steps']:,}", *losses, f"{one.record['seconds']:.1f}"]
        )
    note = (
        "The loss is the mean NLL of the response tokens in a step's batch, in nats per token. Arms are trained on "
        "different examples: compare the losses within an arm only."
    )
    return Part("Training", lines=[note], kind="note", rows=rows)


def chosen(folder: Path, outcomes: Sequence[Outcome]) -> Iterator[Part]:
    """Yield the first records that each arm was trained on: of its first seed, at its first budget."""
    rows, seen = [["arm", "record"]], set[str]()
    for one in outcomes:
        if one.record["training"] is None or one.cell.arm in seen:
            continue
        seen.add(one.cell.arm)
        for text in first_records(folder / CELLS / one.trained / TRAIN):
            rows.append([f"{one.cell.arm}, {one.cell.budget}", text])
    if len(rows) > 1:
        note = f"The first {SHOWN} records of each arm in the order of the data: a sample, and not the best ones."
        yield Part("What the arms chose", lines=[note], kind="note", rows=rows)


def first_records(path: Path) -> list[str]:
    """Some records in short; none where the file was removed."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        return [short(line) for line in islice(stream, SHOWN)]


def short(line: str) -> str:
    """The texts of a record, without names of fields and without what is null or empty."""
    record = json.loads(line)
    said = " | ".join(words_of(record)) or line
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."


def words_of(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip():
        yield " ".join(value.split())
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in ("role", "from", "id", "type"):
                yield from words_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from words_of(one)
