"""Run folders as `select` writes them, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tithe.data.dataset import open_dataset
from tithe.data.input_check import InputCheck
from tithe.records import Example
from tithe.settings import SelectSettings


def write_run(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[float | None]],
    dropped: Sequence[str | None] | None,
    **record: Any,
) -> Path:
    """Write a data set and the folder of a run over it.

    Args:
        folder: gets `data.jsonl` and `run.tithe`.
        records: Alpaca records.
        scores: scorer -> a score for each.
        dropped: why each is dropped; None for a run that chose nothing.
        record: further keys of the run record.
    """
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in records))
    found = open_dataset(str(data))
    examples = [one for one in found if isinstance(one, Example)]
    count = len(examples)
    columns: dict[str, Any] = {
        "id": [one.id for one in examples],
        "row": pa.array([one.row for one in examples], pa.int64()),
        "turn": pa.array([one.turn for one in examples], pa.int32()),
        **{name: pa.array(values, pa.float64()) for name, values in scores.items()},
        **{name: pa.array([None] * count, pa.float64()) for name in ("nll_given", "nll_alone", "nll_shown")},
        "response_tokens": pa.array([len(one.response.content.split()) for one in examples], pa.int32()),
        "problem": pa.array([None] * count, pa.string()),
    }
    if dropped is not None:
        columns["dropped"] = pa.array(dropped, pa.string())
    run = folder / "run.tithe"
    run.mkdir()
    pq.write_table(pa.table(columns), run / "scores.parquet")
    settings = SelectSettings(dataset=str(data), scorer=tuple(scores), keep=1)
    kept = count if dropped is None else sum(why is None for why in dropped)
    made = {
        "settings": settings.model_dump(mode="json"),
        "versions": {"tithe": "0.1.0"},
        "dataset": InputCheck(found).describe(),
        "counts": {"records": len(records), "examples": count, "bad_rows": {}},
        "outcome": {"status": "finished"},
        "selection": {"by": next(iter(scores)), "kept": kept},
        **record,
    }
    (run / "run.json").write_text(json.dumps(made))
    return run


def alpaca(count: int) -> list[dict[str, Any]]:
    """Records that all differ."""
    return [
        {
            "instruction": f"Say the number {i}.",
            "input": "",
            "output": f"It is {i}. " * (1 + i % 5),
            "kind": "ab"[i % 2],
        }
        for i in range(count)
    ]


def write_tokens(run: Path, rows: Sequence[tuple[str, str, Sequence[int], Sequence[float]]]) -> None:
    """Write `tokens.parquet`: rows of id, pass, token ids and losses."""
    names = ("id", "pass", "token_ids", "nll")
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), run / "tokens.parquet")
