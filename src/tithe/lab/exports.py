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
from tithe.data.trainer_rows import MESSAGES, MS_SWIFT, TORCHTUNE, UNSLOTH, WEIGHTED, how_to_train, write_rows
from tithe.data.trainers import axolotl_snippet, rewriting_helps, trainer_notes, trl_snippet, write_llamafactory
from tithe.data.writers import OutShape
from tithe.errors import SettingsError, did_you_mean
from tithe.records import Example
from tithe.report.reporter import Reporter, say_notes
from tithe.run.example_weights import ExampleWeights
from tithe.run.folder import check_places, default_folder
from tithe.run.source import named_dataset

ROWS = (MS_SWIFT, TORCHTUNE, UNSLOTH)  # trainers for which the records are written anew
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
    weights: str | None = None,
    run: Path | None = None,
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
        weights: score of a run that weighs the examples, `NAME` or `rank(NAME)`; see `ExampleWeights`.
        run: folder of that run; by default the one beside `data`.
        reporter: gets messages.

    Returns:
        A snippet to print, or None if there is none.

    Raises:
        TitheError: an unknown target, or one that cannot hold these records.
    """
    known = [*SHAPES, "llamafactory", *ROWS, *SNIPPETS]
    if to not in known:
        raise SettingsError(f"no export to `{to}`", hint=did_you_mean(to, known))
    if weights is not None and to not in WEIGHTED:
        raise SettingsError(f"nothing reads weights of examples in `{to}`", hint=f"`--to {MS_SWIFT}`, or `{MESSAGES}`")
    if run is not None and weights is None:
        raise SettingsError("`--run` names the scores of weights, and there are none", hint='`--weights "rank(ifd)"`')
    reporter, data = reporter or Reporter(), named_dataset(data)
    if to != "llamafactory":  # which adds to an existing file
        check_places(output, overwrite, data, None)
    dataset = open_dataset(data, format=format, turns=cast(Turns, turns), columns=columns)
    if to in ROWS or weights is not None:
        folder = run or default_folder(Path(data))
        found = ExampleWeights.read(weights, folder) if weights is not None else None
        return export_rows(dataset, to, output, overwrite, found, reporter)
    if to in SHAPES:
        rewrite(dataset, to, output, overwrite, reporter)
        return None
    for note in dataset.notes:
        reporter.say(note)
    seen = survey_dataset(dataset)
    told = [f"note: {line}" for line in trainer_notes(to, seen)]
    if rewriting_helps(to, seen):
        named = f" --columns {','.join(dataset.names.entries)}" if dataset.names else ""
        told.append(
            f"hint: `tithe export {data}{named} --to messages -o FILE` writes these records in one plain spelling"
        )
    if to == "llamafactory":
        stem = Path(data).name.partition(".")[0]
        path = write_llamafactory(
            stem, data, seen, info=output or Path(data).with_name("dataset_info.json"), overwrite=overwrite
        )
        for line in told:
            reporter.say(line)
        reporter.say(f"written: {path}, with an entry for `{stem}`")
        return None
    snippet = "".join(f"# {line}\n" for line in told) + SNIPPETS[to](data, seen)
    if output is None:
        return snippet
    with atomic(output, overwrite) as stream:
        stream.write(snippet.encode(errors="backslashreplace"))
    reporter.say(f"written: {output} ({KINDS[to]}; the records stay in {data})")
    return None


def export_rows(
    dataset: Dataset, to: str, output: Path | None, overwrite: bool, weights: ExampleWeights | None, reporter: Reporter
) -> str | None:
    """Write the examples for a trainer, and return what the trainer needs to read them."""
    if output is None:
        raise SettingsError(f"`--to {to}` writes a file of records", hint="name it with `-o`")
    if output.suffix not in (".jsonl", ".json"):
        raise SettingsError(
            f"`--to {to}` writes JSON lines, not `{output.suffix}`", hint=f"name it `{output.stem}.jsonl`"
        )
    read = RecordCounts(deed="taken")
    examples = [item for item in read.counting(dataset) if isinstance(item, Example)]
    amounts = None if weights is None else weights.of([one.id for one in examples]).tolist()
    done = write_rows(examples, to, output, overwrite=overwrite, weights=amounts)
    say_notes(reporter, dataset, read.as_dict())
    for reason, n in read.bad.items():
        reporter.say(f"left out, {n:,}: {reason}")
    for reason, n in done.left_out.items():
        reporter.say(f"left out, {n:,}, as {to} does not read it: {reason}")
    if done.earlier:
        reporter.say(f"note: {done.earlier:,} examples have earlier responses, which torchtune learns too")
    told = f", weighted by {weights.by}" if weights is not None else ""
    reporter.say(f"written: {output}, {done.records:,} records{told}")
    return None if to == MESSAGES else how_to_train(to, output, weighted=weights is not None)


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
