"""Write the score table by the suffix of its file: Parquet, CSV or JSON lines, with the same values in each."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.outfile import atomic
from tithe.data.sniff import container_suffix
from tithe.errors import SettingsError
from tithe.run.folder import write_table

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula
INFINITE = "1e999"  # JSON has no infinity, and reads a number this large as one


def check_scores_file(path: Path) -> None:
    """Refuse a file name for scores whose suffix names none of their formats.

    Raises:
        SettingsError: it ends in something else.
    """
    suffix = container_suffix(path)
    if suffix not in KINDS or (suffix == ".parquet" and path.suffix.lower() != suffix):
        raise SettingsError(
            f"scores are written as .parquet, .csv, .tsv or .jsonl, not to `{path}`",
            hint=f"name it `{path.name.partition('.')[0] or 'scores'}.parquet`",
        )


def write_scores(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write the score table atomically, replacing what is there.

    Args:
        path: of the file; `.gz` and `.zst` compress CSV and JSON lines.
        parts: at least one part of the table.
    """
    suffix = container_suffix(path)
    if KINDS[suffix] == "parquet":
        write_table(path, parts)
        return
    with atomic(path, overwrite=True) as stream:
        for number, part in enumerate(parts):
            if KINDS[suffix] == "csv":
                stream.write(csv_text(part, "\t" if suffix == ".tsv" else ",", header=number == 0).encode())
            else:
                stream.write("".join(map(json_text, part.to_pylist())).encode())


def csv_text(part: pa.Table, delimiter: str, *, header: bool) -> str:
    """Return a part of the table as CSV; floats in full precision, and an empty cell where there is no value."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    if header:
        lines.writerow(part.column_names)
    for row in zip(*(part[name].to_pylist() for name in part.column_names), strict=True):
        lines.writerow(map(cell, row))
    return text.getvalue()


def cell(value: Any) -> str:
    """Return a value as a cell; text that a spreadsheet would compute gets an apostrophe in front."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return repr(value)


def json_text(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON; null where there is no value."""
    return "{" + ", ".join(f"{json.dumps(name)}: {json_value(value)}" for name, value in row.items()) + "}\n"


def json_value(value: Any) -> str:
    """Return a value as JSON, without the `NaN` and `Infinity` that only some readers know."""
    if isinstance(value, float) and not math.isfinite(value):
        return "null" if math.isnan(value) else INFINITE if value > 0 else f"-{INFINITE}"
    return json.dumps(value)
