"""Read a task's data from local files, as the rows of the data set that lm-eval would load from the hub.

Only the data come from the files; prompts, filters and metrics stay lm-eval's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from tithe.data.containers import Row
from tithe.data.sniff import sniff
from tithe.errors import DataError, SettingsError
from tithe.foreign import foreign, read_small
from tithe.lab.evaluate.programs import plus_tests, split_tests

Record: TypeAlias = Mapping[str, Any]
BEFORE = "Question: "


# One function per data set follows: a record of the file, and its place for messages -> the row of the hub.
def gsm8k(record: Record, where: str) -> dict[str, Any]:
    return {name: read_field(record, name, TEXT, where) for name in ("question", "answer")}


def humaneval(record: Record, where: str) -> dict[str, Any]:
    """Read OpenAI's file; without the field `entry_point`, the call at the end of the tests names the function."""
    row = {name: read_field(record, name, TEXT, where) for name in ("task_id", "prompt", "test")}
    if "entry_point" in record:
        return row | {"entry_point": read_field(record, "entry_point", TEXT, where)}
    test, name = split_tests(row["test"], where)
    return row | {"test": test, "entry_point": name}


def humaneval_plus(record: Record, where: str) -> dict[str, Any]:
    """Read the hub's file, or EvalPlus's own, which has inputs instead of complete tests."""
    row = {name: read_field(record, name, TEXT, where) for name in ("task_id", "prompt", "entry_point", "test")}
    if "plus_input" not in record:
        return row
    inputs = [*read_field(record, "base_input", MANY, where), *read_field(record, "plus_input", MANY, where)]
    reference = row["prompt"] + read_field(record, "canonical_solution", TEXT, where)
    return row | {"test": plus_tests(reference, row["entry_point"], inputs, record.get("atol", 0))}


def arc(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record and "answerKey" in record:
        return arc_of_the_hub(record, where)
    texts = read_field(record, "choices", TEXTS, where)
    gold = read_choice(record, "gold", len(texts), where)
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    question = read_field(record, "query", TEXT, where).removeprefix(BEFORE)
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


def arc_of_the_hub(record: Record, where: str) -> dict[str, Any]:
    choices = record.get("choices")
    if not isinstance(choices, Mapping):
        raise DataError(f"{where}: the field `choices` is {str(choices)[:60]!r}, not an object of `text` and `label`")
    found = {name: read_field(choices, name, TEXTS, where) for name in ("text", "label")}
    key = read_field(record, "answerKey", TEXT, where)
    if key not in found["label"] or len(found["label"]) != len(found["text"]):
        raise DataError(f"{where}: the field `answerKey` is `{key}`, and the labels are {', '.join(found['label'])}")
    return {"question": read_field(record, "question", TEXT, where), "choices": found, "answerKey": key}


def piqa(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record:
        row = {name: read_field(record, name, TEXT, where) for name in ("goal", "sol1", "sol2")}
        return row | {"label": read_choice(record, "label", 2, where)}
    texts = read_field(record, "choices", TEXTS, where)
    if len(texts) != 2:
        raise DataError(f"{where}: the field `choices` holds {len(texts)} texts, not 2")
    goal = read_field(record, "query", TEXT, where).removeprefix(BEFORE).removesuffix("\n")
    return {"goal": goal, "sol1": texts[0], "sol2": texts[1], "label": read_choice(record, "gold", 2, where)}


def truthfulqa(record: Record, where: str) -> dict[str, Any]:
    """Build both targets: mc1 is the best answer against all false ones, mc2 all true ones against all false ones."""
    question = read_field(record, "question", TEXT, where)
    best = read_field(record, "best_answer", TEXT, where)
    right, wrong = (read_field(record, f"{name}_answers", TEXTS, where) for name in ("correct", "incorrect"))
    return {
        "question": question,
        "correct_answers": right,
        "incorrect_answers": wrong,
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


TEXT, TEXTS, NUMBER, MANY = "a text", "a list of texts", "a whole number", "a list"


def read_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each record of a JSON lines, JSON, CSV or Parquet file, packed or not, after its place.

    Raises:
        DataError: the file cannot be read or is empty, or a record is no object.
    """
    found = 0
    for row in sniff(path).rows():
        found += 1
        yield row.where, as_object(row)
    if not found:
        raise DataError(f"`{path}` has no records", hint="a task needs at least one")


def as_object(row: Row) -> Mapping[str, Any]:
    """Return the row's record.

    Raises:
        DataError: it is not an object.
    """
    if row.fault is not None or not isinstance(row.record, Mapping):
        raise DataError(f"{row.where}: {row.fault or 'the record is not an object'}")
    return row.record


def read_field(record: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """Return a field of a record.

    Raises:
        DataError: it is missing or of another kind.
    """
    if name not in record:
        raise DataError(f"{where}: the record has no field `{name}`", hint=f"it has: {', '.join(record) or 'nothing'}")
    value = record[name]
    fits = {
        TEXT: isinstance(value, str),
        TEXTS: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
        NUMBER: isinstance(value, int) and not isinstance(value, bool),
        MANY: isinstance(value, list),
    }
    if not fits[kind]:
        raise DataError(f"{where}: the field `{name}` is {str(value)[:60]!r}, and not {kind}")
    return value


def read_choice(record: Mapping[str, Any], name: str, choices: int, where: str) -> int:
    """Return a field that is the index of one of so many choices.

    Raises:
        DataError: it is missing, or no such index.
    """
    value: int = read_field(record, name, NUMBER, where)
    if not 0 <= value < choices:
        raise DataError(f"{where}: the field `{name}` is {value}, and there are {choices} choices, counted from 0")
    return value


Rows: TypeAlias = list[dict[str, Any]]
PACKED = ("", ".gz", ".zst")


@dataclass(frozen=True)
class Known:
    """A data set of the hub that can be read from local files.

    Args:
        split: the split that is evaluated.
        names: subset -> split -> name of its file in a folder.
        row: turns a record of the file, and its place, into a row of the hub; None for MMLU's tables.
    """

    split: str
    names: Callable[[str | None], Mapping[str, str]]
    row: Callable[[Record, str], dict[str, Any]] | None


def same_names(**names: str) -> Callable[[str | None], Mapping[str, str]]:
    """Return file names that do not depend on the subset."""
    return lambda _: names


def arc_names(subset: str | None) -> Mapping[str, str]:
    """Return the file names of `ARC-Easy` or `ARC-Challenge`."""
    stem = str(subset).lower().replace("-", "_")
    return {"test": f"{stem}.jsonl", "train": f"{stem}_train.jsonl"}


KNOWN: Mapping[str, Known] = {
    "openai/gsm8k": Known("test", same_names(test="gsm8k_test.jsonl", train="gsm8k_train.jsonl"), gsm8k),
    "openai/openai_humaneval": Known("test", same_names(test="humaneval.jsonl"), humaneval),
    "evalplus/humanevalplus": Known("test", same_names(test="humaneval_plus.jsonl"), humaneval_plus),
    "allenai/ai2_arc": Known("test", arc_names, arc),
    "baber/piqa": Known("validation", same_names(validation="piqa.jsonl", train="piqa_train.jsonl"), piqa),
    "truthfulqa/truthful_qa": Known("validation", same_names(validation="truthfulqa.jsonl"), truthfulqa),
    "cais/mmlu": Known("test", same_names(test="mmlu.zip"), None),
}


@dataclass(frozen=True)
class LocalData:
    """Local files of one task.

    Args:
        files: split -> file; MMLU has one for all splits.
        hub: the data set's name on the hub.
        subset: the subset's name on the hub.
    """

    files: Mapping[str, Path]
    hub: str
    subset: str | None

    def rows(self) -> dict[str, Rows]:
        """Return the rows of each split, in the hub's format.

        Raises:
            DataError: a file is damaged, or lacks a field.
        """
        made = KNOWN[self.hub].row
        if made is None:
            return mmlu_tables(self.files["test"], str(self.subset))
        return {split: [made(one, where) for where, one in read_records(file)] for split, file in self.files.items()}

    def digest(self) -> dict[str, str]:
        """Return the hash of each file."""
        return {str(file): digest(file) for file in self.files.values()}


def find_files(hub: str, subset: str | None, path: Path, task: str) -> LocalData:
    """Find the files of a task: the given one and, for worked examples, the one beside it.

    Raises:
        SettingsError: tithe cannot read this task from files, or there is no such file.
    """
    if hub not in KNOWN:
        raise SettingsError(
            f"task `{task}` cannot be read from `{path}`: its data set `{hub}` has no known form of local files",
            hint=f"known are those of {', '.join(KNOWN)}",
        )
    known = KNOWN[hub]
    names = known.names(subset)
    if not path.exists():
        raise SettingsError(f"task `{task}`: there is no file `{path}`", hint="`--tasks NAME=FILE`, or a folder")
    if known.row is None:
        packed = path / names["test"]
        return LocalData({"test": packed if path.is_dir() and packed.exists() else path}, hub, subset)
    first = path if path.is_file() else find_packed(path / names[known.split])
    if first is None:
        raise SettingsError(f"task `{task}`: the folder `{path}` has no `{names[known.split]}`", hint="name the file")
    files = {known.split: first}
    for split in names.keys() - {known.split}:  # the splits that worked examples may come from
        beside = [first.with_name(first.name.replace("test", split)), first.with_name(names[split])]
        there = next((one for name in beside if (one := find_packed(name)) not in (None, first)), None)
        if there is not None:
            files[split] = there
    return LocalData(files, hub, subset)


def find_packed(path: Path) -> Path | None:
    """Return the path of the file, packed or not; None if there is neither."""
    return next((one for end in PACKED if (one := path.with_name(path.name + end)).is_file()), None)


def digest(path: Path) -> str:
    """Return the hash of a file, or of the CSV tables in a folder."""
    state = hashlib.blake2b(digest_size=16)
    for file in [path] if path.is_file() else sorted(path.rglob("*.csv")):
        with file.open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


LETTERS = "ABCD"
MOST_TABLE = 1 << 24  # bytes; MMLU's largest table has 2 MB


@lru_cache(maxsize=2)
def read_tables(path: Path, _: tuple[int, int]) -> Mapping[str, bytes]:
    """Return name -> bytes of every table in a zip file or a folder.

    Args:
        path: the zip file or folder.
        _: its time and size, so that a changed file is read again in spite of the cache.

    Raises:
        DataError: it cannot be read, or a table is too large.
    """
    if path.is_dir():
        return {file.name: read_small(file, DataError, MOST_TABLE) for file in sorted(path.rglob("*.csv"))}
    # `zipfile` raises a different exception for damage, for an unknown compression and for a password.
    with (
        foreign(DataError, f"`{path}` is not a readable zip file", hint="MMLU's `data.zip`"),
        zipfile.ZipFile(path) as packed,
    ):
        names = [name for name in packed.namelist() if name.endswith(".csv")]
        return {Path(name).name: read_member(packed, name, path) for name in names}


def read_member(packed: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Read one table of an archive, but no more bytes than a table can have.

    Raises:
        DataError: it is larger.
    """
    with packed.open(name) as stream:
        raw = stream.read(MOST_TABLE + 1)
    if len(raw) > MOST_TABLE:
        raise DataError(f"the table `{name}` of `{path}` has more than {MOST_TABLE:,} bytes", hint="MMLU's `data.zip`")
    return raw


def mmlu_tables(path: Path, subject: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of one subject's tables, whose rows have a question, four choices and a letter.

    Raises:
        DataError: a table is missing, empty or has other columns.
    """
    stat = path.stat()
    found = read_tables(path, (stat.st_mtime_ns, stat.st_size))
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
    """Return a row of the hub from the cells of a table's row.

    Raises:
        DataError: the cells do not fit.
    """
    if len(cells) != 6 or cells[5] not in LETTERS or not cells[5]:
        raise DataError(f"{where}: {len(cells)} cells ending in `{''.join(cells[-1:])[:20]}`, not 6 ending in A to D")
    question, *choices, letter = cells
    return {"question": question, "subject": subject, "choices": choices, "answer": LETTERS.index(letter)}
