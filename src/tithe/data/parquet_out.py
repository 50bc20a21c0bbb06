"""Chosen records as Parquet: with the input's own columns and types, or with those that hold them all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tithe.data.containers import parquet_batches
from tithe.data.writers import Job, files_of
from tithe.errors import OutputError

_CHUNK = 2048  # records encoded at once


def write_parquet(job: Job, stream: io.BufferedIOBase, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = _filtered(job, pa) if _keeps_schema(job) else _inferred(job, pa)
    count = 0
    try:
        first = next(tables)
        with pq.ParquetWriter(stream, first.schema) as writer:
            writer.write_table(first)
            count += len(first)
            for table in tables:
                writer.write_table(table)
                count += len(table)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        words = next(iter(str(error).splitlines()), "")
        raise OutputError(
            f"the records do not fit the columns of a Parquet file: {words}", hint="write .jsonl"
        ) from None
    return count


def _keeps_schema(job: Job) -> bool:
    return job.as_is and len(files_of(job.dataset)) == 1 and files_of(job.dataset)[0].container == "parquet"


def _filtered(job: Job, pa: Any) -> Iterator[Any]:
    """The input's own columns and types, and one more for the reasons."""
    number = 0
    limit = job.dataset.limit
    for batch in parquet_batches(files_of(job.dataset)[0]):
        rows = range(number, number + len(batch))
        number += len(batch)
        keep = [row for row in rows if row in job.rows and (limit is None or row < limit)]
        table = pa.Table.from_batches([batch]).take([row - rows.start for row in keep])
        if job.reasons:
            if "tithe_reason" in table.column_names:  # a dropped file, selected from again
                table = table.drop_columns("tithe_reason")
            table = table.append_column("tithe_reason", _reasons(job, keep, pa))
            extra = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"huggingface"}
            table = table.replace_schema_metadata(extra)  # `datasets` would miss the new column in its own list
        yield table


def _reasons(job: Job, rows: list[int], pa: Any) -> Any:
    several = any(isinstance(reason, list) for reason in job.reasons.values())
    values = [job.reasons.get(row) for row in rows]
    return pa.array(values, pa.list_(pa.string()) if several else pa.string())


def _inferred(job: Job, pa: Any) -> Iterator[Any]:
    """Types that hold all records: one look over them, then the writing."""
    schema = pa.schema([])
    for chunk in _chunks(job.out()):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(chunk).schema], promote_options="permissive")
    yield schema.empty_table()
    for chunk in _chunks(job.out()):
        yield pa.Table.from_pylist(chunk, schema)


def _chunks(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of records that all name the same columns, because Arrow takes the columns of the first."""
    while chunk := list(islice(records, _CHUNK)):
        names = dict.fromkeys(name for record in chunk for name in record)
        yield [{name: record.get(name) for name in names} for record in chunk]
