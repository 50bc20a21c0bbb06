"""MMLU as it was published: a zip file, or its folder, of tables without a header, one a subject and split."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tithe.errors import DataError

LETTERS = "ABCD"


@lru_cache(maxsize=2)
def tables(path: Path, _: tuple[int, int]) -> Mapping[str, bytes]:
    """Name -> bytes of every table of a zip file or a folder."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.rglob("*.csv"))}
    try:
        with zipfile.ZipFile(path) as packed:
            names = [name for name in packed.namelist() if name.endswith(".csv")]
            return {Path(name).name: packed.read(name) for name in names}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"`{path}` is no zip file that can be read: {error}", hint="MMLU's `data.zip`") from error


def mmlu_tables(path: Path, subject: str) -> dict[str, list[dict[str, Any]]]:
    """One subject's tables: question, four choices and a letter a row."""
    stat = path.stat()
    found = tables(path, (stat.st_mtime_ns, stat.st_size))
    out: dict[str, list[dict[str, Any]]] = {}
    for split in ("test", "dev"):
        name = f"{subject}_{split}.csv"
        if name not in found:
            raise DataError(f"`{path}` has no table `{name}`", hint=f"it has {len(found)} tables")
        lines = csv.reader(io.StringIO(found[name].decode("utf-8"), newline=""))
        out[split] = [mmlu_row(cells, subject, f"{path}:{name}:{lines.line_num}") for cells in lines]
        if not out[split]:
            raise DataError(f"the table `{name}` of `{path}` is empty")
    return out


def mmlu_row(cells: Sequence[str], subject: str, where: str) -> dict[str, Any]:
    if len(cells) != 6 or cells[5] not in LETTERS or not cells[5]:
        raise DataError(
            f"{where}: {len(cells)} cells ending in `{''.join(cells[-1:])[:20]}`, and not 6 ending in A to D"
        )
    question, *choices, letter = cells
    return {"question": question, "subject": subject, "choices": choices, "answer": LETTERS.index(letter)}
