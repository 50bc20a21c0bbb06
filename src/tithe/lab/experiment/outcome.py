"""What came of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.lab.experiment.cells import Outcome
from tithe.lab.experiment.results import Results

PAGE, TABLE, PLOTS = "report.html", "comparisons.csv", "plots"


@dataclass(frozen=True)
class ExperimentResult:
    """What came of an experiment.

    Args:
        folder: where everything lies.
        record: as in `experiment.json`.
        results: means and comparisons; None where nothing was trained.
        outcomes: the cells.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)
    results: Results | None = field(default=None, repr=False)
    outcomes: tuple[Outcome, ...] = field(default=(), repr=False)
