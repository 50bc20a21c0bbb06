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
from tithe.foreign import foreign, read_small

LETTERS = "ABCD"
MOST_TABLE = 1 << 24  # bytes: the largest of MMLU has 2 MB


@lru_cache(maxsize=2)
def tables(path: Path, _: tuple[int, int]) -> Mapping[str, bytes]:
    """Name -> bytes of every table of a zip file or a folder.

    Raises:
        DataError: it cannot be read, or a table is larger than one can be.
    """
    if path.is_dir():
        return {file.name: read_small(file, DataError, MOST_TABLE) for file in sorted(path.rglob("*.csv"))}
    # Damage, a way of packing that Python lacks, a password: `zipfile` has an exception of another kind for each.
    with (
        foreign(DataError, f"`{path}` is no zip file that can be read", hint="MMLU's `data.zip`"),
        zipfile.ZipFile(path) as packed,
    ):
        names = [name for name in packed.namelist() if name.endswith(".csv")]
        return {Path(name).name: member(packed, name, path) for name in names}


def member(packed: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """One table of an archive, unpacked no further than a table goes."""
    with packed.open(name) as stream:
        raw = stream.read(MOST_TABLE + 1)
    if len(raw) > MOST_TABLE:
        raise DataError(f"the table `{name}` of `{path}` has more than {MOST_TABLE:,} bytes", hint="MMLU's `data.zip`")
    return raw


def mmlu_tables(path: Path, subject: str) -> dict[str, list[dict[str, Any]]]:
    """One subject's tables: question, four choices and a letter a row.

    Raises:
        DataError: a table is missing, empty, or not such a table.
    """
    stat = path.stat()
    found = tables(path, (stat.st_mtime_ns, stat.st_size))
    out: dict[str, list[dict[str, Any]]] = {}
    for split in ("test", "dev"):
        name = f"{subject}_{split}.csv"
        if name not in found:
            raise DataError(f"`{path}` has no table `{name}`", hint=f"it has {len(found)} tables")
        with foreign(DataError, f"the table `{name}` of `{path}` cannot be read"):
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
