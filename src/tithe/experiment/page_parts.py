"""Parts of the page that show what was trained: caveats, losses, and records that each arm chose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tithe.experiment.cells import CELLS, TRAIN, Outcome
from tithe.experiment.outcome import ExperimentResult
from tithe.experiment.screen import cautions
from tithe.report.page import Part

SHOWN = 3  # records of an arm
LONGEST = 300  # characters of a record


def caveats(result: ExperimentResult) -> Part:
    """What limits the verdicts, all that the screen says too."""
    lines = list(cautions(result.record))
    seeds, held_out = len(result.record["settings"]["seeds"]), result.record["data"]["prompts"]
    lines.append(
        f"These verdicts are of {seeds} seeds and {held_out:,} held-out items, of this model, data and recipe."
    )
    return Part("Before you believe it", lines=lines)


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
    note = "Mean NLL of the response tokens of a step's batch, in nats per token: of other examples in each arm."
    return Part("Training", lines=[note], kind="note", rows=rows)


def chosen(result: ExperimentResult) -> Iterator[Part]:
    """The first records that each arm was trained on, of its first seed, at its smallest budget."""
    rows, seen = [["arm", "record"]], set[str]()
    for one in result.outcomes:
        if one.record["training"] is None or one.cell.arm in seen:
            continue
        seen.add(one.cell.arm)
        for text in first_records(result.folder / CELLS / one.trained / TRAIN):
            rows.append([f"{one.cell.arm}, {one.cell.budget}", text])
    if len(rows) > 1:
        note = f"The first {SHOWN} records, in the order of the data, that each arm was trained on, and not the best."
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
