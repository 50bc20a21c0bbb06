"""Every response token's NLL, for those who ask: `--per-token`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from tithe.data.outfile import atomic
from tithe.planner import Slot, members
from tithe.records import Nll
from tithe.runners.local import Scored


def schema() -> Any:
    """Of the file."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("pass", pa.string()),
            ("shots", pa.list_(pa.string())),
            ("token_ids", pa.list_(pa.int32())),
            ("nll", pa.list_(pa.float32())),
        ]
    )


class TokenFile:
    """`id, pass, shots, token_ids, nll`: one row per response and pass that was asked for.

    The last two are lists over the scored response tokens; `shots` are the ids of the worked examples before it.
    """

    def __init__(self, path: Path) -> None:
        self._out = atomic(path, overwrite=True)

    def __enter__(self) -> TokenFile:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(self._out.__enter__(), schema(), compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._out.__exit__(kind, error, at)

    def add(self, scored: Scored) -> None:
        """Append a window."""
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for each in scored.window.slots:
            found = {
                (slot.spec.kind, *(one.id for one in members(slot.spec))): slot
                for slots in each
                for slot in slots.values()
                if isinstance(slot, Slot)
            }
            rows += [row for slot in found.values() if (row := self.row(scored, slot)) is not None]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._writer.schema))

    def row(self, scored: Scored, slot: Slot) -> dict[str, Any] | None:
        """What was read for one ask, if that was tokens."""
        spec = slot.spec
        answer = scored.answers[slot.index, slot.readout]
        if not isinstance(answer, Nll) or answer.per_token is None:
            return None
        ids = scored.window.passes[slot.index].ids
        return {
            "id": spec.example.id,
            "pass": spec.kind,
            "shots": [shot.id for shot in spec.shots],
            "token_ids": ids[len(ids) - answer.tokens :],
            "nll": answer.per_token,
        }
