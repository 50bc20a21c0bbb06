"""Every response token's NLL, for those who ask: `--per-token`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tithe.data.outfile import atomic
from tithe.planner import Slot
from tithe.records import Nll
from tithe.runners.local import Scored

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("pass", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("nll", pa.list_(pa.float32())),
    ]
)


class TokenFile:
    """`id, pass, token_ids, nll`: one row per example and pass; both lists hold the scored response tokens."""

    def __init__(self, path: Path) -> None:
        self._out = atomic(path, overwrite=True)

    def __enter__(self) -> TokenFile:
        self._writer = pq.ParquetWriter(self._out.__enter__(), SCHEMA, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._out.__exit__(kind, error, at)

    def add(self, scored: Scored) -> None:
        """Append a window."""
        rows: list[dict[str, Any]] = []
        for example, each in zip(scored.window.examples, scored.window.slots, strict=True):
            seen = {slot.index: slot for slots in each for slot in slots.values() if isinstance(slot, Slot)}
            for index, slot in seen.items():
                answer = scored.answers[index, slot.readout]
                if isinstance(answer, Nll) and answer.per_token is not None:
                    ids = scored.window.passes[index].ids
                    ids = ids[len(ids) - answer.tokens :]
                    kind = scored.window.kinds[index]
                    rows.append({"id": example.id, "pass": kind, "token_ids": ids, "nll": answer.per_token})
        self._writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
