"""Export a data set to another shape or for another trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.export import write_records
from tithe.data.formats import Turns
from tithe.data.outfile import atomic
from tithe.data.survey import survey_dataset
from tithe.data.trainers import axolotl_snippet, rewriting_helps, trainer_notes, trl_snippet, write_llamafactory
from tithe.data.writers import OutShape
from tithe.errors import SettingsError, did_you_mean
from tithe.records import Example
from tithe.report.reporter import Reporter, say_notes
from tithe.run.folder import check_places
from tithe.run.source import named_dataset

SNIPPETS = {"axolotl": axolotl_snippet, "trl": trl_snippet}
KINDS = {"axolotl": "YAML settings", "trl": "a Python program"}
SHAPES = [shape for shape in get_args(OutShape) if shape != "same"]


def export(
    data: str,
    to: str,
    *,
    output: Path | None,
    overwrite: bool = False,
    format: str = "auto",
    turns: str = "last",
    columns: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> str | None:
    """Rewrite records, or make the settings or program with which a trainer reads them.

    Args:
        data: a data set.
        to: a shape, or a trainer.
        output: file to write.
        overwrite: replace a file that is there.
        format: the records' shape.
        turns: which responses of a record are trained on.
        columns: the user's names of columns, as `role=column`.
        reporter: gets messages.

    Returns:
        A snippet to print, or None if a file was written.

    Raises:
        TitheError: an unknown target, or one that cannot hold these records.
    """
    known = [*SHAPES, "llamafactory", *SNIPPETS]
    if to not in known:
        raise SettingsError(f"no export to `{to}`", hint=did_you_mean(to, known))
    reporter, data = reporter or Reporter(), named_dataset(data)
    if to != "llamafactory":  # which adds to an existing file
        check_places(output, overwrite, data, None)
    dataset = open_dataset(data, format=format, turns=cast(Turns, turns), columns=columns)
    if to in SHAPES:
        rewrite(dataset, to, output, overwrite, reporter)
        return None
    for note in dataset.notes:
        reporter.say(note)
    found = survey_dataset(dataset)
    told = [f"note: {line}" for line in trainer_notes(to, found)]
    if rewriting_helps(to, found):
        named = f" --columns {','.join(dataset.names.entries)}" if dataset.names else ""
        told.append(
            f"hint: `tithe export {data}{named} --to messages -o FILE` writes these records in one plain spelling"
        )
    if to == "llamafactory":
        stem = Path(data).name.partition(".")[0]
        path = write_llamafactory(
            stem, data, found, info=output or Path(data).with_name("dataset_info.json"), overwrite=overwrite
        )
        for line in told:
            reporter.say(line)
        reporter.say(f"written: {path}, with an entry for `{stem}`")
        return None
    snippet = "".join(f"# {line}\n" for line in told) + SNIPPETS[to](data, found)
    if output is None:
        return snippet
    with atomic(output, overwrite) as stream:
        stream.write(snippet.encode(errors="backslashreplace"))
    reporter.say(f"written: {output} ({KINDS[to]}; the records stay in {data})")
    return None


def rewrite(dataset: Dataset, to: str, output: Path | None, overwrite: bool, reporter: Reporter) -> None:
    """Write all records in another shape, or normalise them in their own."""
    if output is None:
        raise SettingsError(f"`--to {to}` writes a file", hint="name it with `-o`")
    rows: dict[int, list[int]] = {row: [] for row, _ in dataset.rows()}
    read = RecordCounts(deed="taken")
    for item in read.counting(dataset):
        if isinstance(item, Example):
            rows[item.row].append(item.turn)
    written = write_records(
        dataset, rows, output, shape=cast(OutShape, to), overwrite=overwrite, rewrite=to == dataset.format
    )
    say_notes(reporter, dataset, read.as_dict())
    if bad := read.bad.total():
        lost = f"; {written.unreadable:,} of them have no place in such a file" if written.unreadable else ""
        reporter.say(f"note: {bad:,} cannot be read as examples and are written as they stand{lost}")
        for reason, n in read.bad.items():
            reporter.say(f"bad rows, {n:,}: {reason}")
    reporter.say(f"written: {output}, {written.records:,} records")
