"""A kept file for somebody else's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from tithe.data.export import write_records
from tithe.data.files import Dataset, open_dataset
from tithe.data.outfile import atomic
from tithe.data.trainers import axolotl_snippet, trl_snippet, write_llamafactory
from tithe.data.writers import OutShape
from tithe.errors import SettingsError, did_you_mean
from tithe.run.folder import check_places
from tithe.run.pool import named_dataset
from tithe.run.talk import Talk

SNIPPETS = {"axolotl": axolotl_snippet, "trl": trl_snippet}
SHAPES = [shape for shape in get_args(OutShape) if shape != "same"]


def export(
    data: str, to: str, *, output: Path | None, overwrite: bool = False, format: str = "auto", talk: Talk | None = None
) -> str | None:
    """Rewrite records, or give the text that a trainer needs to read them.

    Returns:
        A snippet to print, or None where a file was written, which `talk` says.

    Raises:
        TitheError: no such target, or records it cannot hold.
    """
    known = [*SHAPES, "llamafactory", *SNIPPETS]
    if to not in known:
        raise SettingsError(f"no export to `{to}`", hint=did_you_mean(to, known))
    talk, data = talk or Talk(), named_dataset(data)
    if to != "llamafactory":  # that one adds to a file which may be there
        check_places(output, overwrite, data, None)
    dataset = open_dataset(data, format=format)
    if to in SNIPPETS:
        snippet = SNIPPETS[to](data, dataset.format, first_record(dataset))
        if output is None:
            return snippet
        with atomic(output, overwrite) as stream:
            stream.write(snippet.encode(errors="backslashreplace"))
        talk.say(f"written: {output}")
        return None
    if to == "llamafactory":
        stem = Path(data).name.partition(".")[0]
        info = output or Path(data).with_name("dataset_info.json")
        path = write_llamafactory(
            stem, data, dataset.format, info=info, sample=first_record(dataset), overwrite=overwrite
        )
        talk.say(f"written: {path}, with an entry for `{stem}`")
        return None
    if output is None:
        raise SettingsError(f"`--to {to}` writes a file", hint="name it with `-o`")
    rows = {row for row, _ in dataset.records()}
    written = write_records(dataset, rows, output, shape=cast(OutShape, to), overwrite=overwrite)
    talk.say(f"written: {output}, {written.records:,} records")
    return None


def first_record(dataset: Dataset) -> Mapping[str, Any] | None:
    return next((record for _, record in dataset.records() if isinstance(record, dict)), None)
