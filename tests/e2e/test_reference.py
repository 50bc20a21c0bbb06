"""The presets against numbers that the papers' own code computed, through the library as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tithe

pytestmark = [pytest.mark.shared, pytest.mark.slow]
TOLERANCE = 2e-4  # relative, per record


@pytest.fixture(scope="module")
def thousand(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 0, 20, ..., 19980 of the Alpaca file."""
    lines = (shared / "data/sft/alpaca_20k.jsonl").read_bytes().splitlines(keepends=True)[0:20_000:20]
    path = tmp_path_factory.mktemp("reference") / "thousand.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def reference(shared: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shared / "reference/ifd" / name).read_text().splitlines()]


def worst(ours: list[float | None], theirs: list[float | None]) -> float:
    """The largest relative difference; both must have a number at the same places."""
    assert [a is None for a in ours] == [b is None for b in theirs]
    a = np.array([value for value in ours if value is not None])
    b = np.array([value for value in theirs if value is not None])
    return float(np.max(np.abs(a - b) / np.abs(b)))


def model(shared: Path) -> str:
    return str(shared / "data/weights/tinystories-656k")


def test_cherry(thousand: Path, shared: Path) -> None:
    result = tithe.select(thousand, preset="cherry", model=model(shared), keep="10%")
    rows, theirs = result.scored.table.to_pylist(), reference(shared, "cherry.jsonl")
    assert [row["row"] * 20 for row in rows] == [line["row"] for line in theirs]
    for name in ("nll_given", "nll_alone", "ifd"):
        assert (
            worst([row[name] for row in rows], [line[name] if "ifd" in line else None for line in theirs]) < TOLERANCE
        )

    assert [row["row"] for row in rows if row["ifd"] is not None and row["ifd"] > 1] == [
        i for i, line in enumerate(theirs) if line["dropped"] == "ifd > 1"
    ]
    # The reader sets an empty response aside before any template; in the authors' code it has no token left.
    (empty,) = [row for row in rows if row["problem"]]
    assert empty["problem"] == "the response is empty"
    assert [empty["row"]] == [i for i, line in enumerate(theirs) if line["dropped"] == "no response token left"]
    assert [row["response_tokens"] for row in rows if row["id"]] == [
        line["response_tokens_given"] for line in theirs if "ifd" in line
    ]

    selected = json.loads((shared / "reference/ifd/cherry_selected_10pct_rows.json").read_text())
    assert [row * 20 for row in sorted(result.rows())] == selected and len(selected) == 87
    assert result.record["selection"]["dropped"] == {"below the budget": 786, "ifd > 1": 126}


def test_superfiltering(thousand: Path, shared: Path) -> None:
    result = tithe.score(thousand, preset="superfiltering", model=model(shared))
    rows, theirs = result.table.to_pylist(), reference(shared, "superfiltering.jsonl")
    for ours, name in (("nll_given", "nll_given"), ("nll_alone", "nll_alone"), ("superfiltering", "ifd_ppl")):
        assert worst([row[ours] for row in rows], [line[name] for line in theirs]) < TOLERANCE
    assert [row["problem"] for row in rows if row["problem"]] == ["the response is empty"]


def test_another_batch_budget_gives_the_same_thousand(thousand: Path, shared: Path) -> None:
    settings: dict[str, Any] = {"model": model(shared), "template": "alpaca", "dtype": "fp32", "limit": 200}
    one = tithe.score(thousand, **settings).table.to_pylist()
    two = tithe.score(thousand, batch_tokens=8192, workers=1, **settings).table.to_pylist()
    assert worst([row["ifd"] for row in one], [row["ifd"] for row in two]) < 1e-5
