"""A kept file for somebody else's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from tithe.data.export import write_records
from tithe.data.files import Dataset, open_dataset
from tithe.data.trainers import axolotl_snippet, trl_snippet, write_llamafactory
from tithe.data.writers import OutShape
from tithe.errors import SettingsError, did_you_mean

SNIPPETS = {"axolotl": axolotl_snippet, "trl": trl_snippet}
SHAPES = [shape for shape in get_args(OutShape) if shape != "same"]


def export(data: str, to: str, *, output: Path | None, overwrite: bool = False, format: str = "auto") -> str | None:
    """Rewrite records, or give the text that a trainer needs to read them.

    Returns:
        A snippet to print, or None where a file was written.

    Raises:
        TitheError: no such target, or records it cannot hold.
    """
    known = [*SHAPES, "llamafactory", *SNIPPETS]
    if to not in known:
        raise SettingsError(f"no export to `{to}`", hint=did_you_mean(to, known))
    dataset = open_dataset(data, format=format)
    if to in SNIPPETS:
        return SNIPPETS[to](data, dataset.format, first_record(dataset))
    if to == "llamafactory":
        stem = Path(data).name.partition(".")[0]
        info = output or Path(data).with_name("dataset_info.json")
        path = write_llamafactory(
            stem, data, dataset.format, info=info, sample=first_record(dataset), overwrite=overwrite
        )
        return f"`{stem}` is in {path}"
    if output is None:
        raise SettingsError(f"`--to {to}` writes a file", hint="name it with `-o`")
    rows = {row: () for row, _ in dataset.records()}
    write_records(dataset, set(rows), output, shape=cast(OutShape, to), overwrite=overwrite)
    return None


def first_record(dataset: Dataset) -> Mapping[str, Any] | None:
    return next((record for _, record in dataset.records() if isinstance(record, dict)), None)
