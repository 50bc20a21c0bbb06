"""Local files of tasks that lm-eval reads from the hub: its own rows, made of what such files hold.

Prompts, filters and metrics stay lm-eval's; only the data set is given by hand.
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
from tithe.lab.evaluate.programs import entry_point, plus_tests

Record: TypeAlias = Mapping[str, Any]
BEFORE = "Question: "


def gsm8k(record: Record, where: str) -> dict[str, Any]:
    return {name: field(record, name, TEXT, where) for name in ("question", "answer")}


def humaneval(record: Record, where: str) -> dict[str, Any]:
    """OpenAI's file as it is; in files without `entry_point` the tests end with a call that names it."""
    row = {name: field(record, name, TEXT, where) for name in ("task_id", "prompt", "test")}
    if "entry_point" in record:
        return row | {"entry_point": field(record, "entry_point", TEXT, where)}
    test, name = entry_point(row["test"], where)
    return row | {"test": test, "entry_point": name}


def humaneval_plus(record: Record, where: str) -> dict[str, Any]:
    """The hub's file as it is; of EvalPlus's own file, with inputs, the tests are made."""
    row = {name: field(record, name, TEXT, where) for name in ("task_id", "prompt", "entry_point", "test")}
    if "plus_input" not in record:
        return row
    inputs = [*field(record, "base_input", MANY, where), *field(record, "plus_input", MANY, where)]
    reference = row["prompt"] + field(record, "canonical_solution", TEXT, where)
    return row | {"test": plus_tests(reference, row["entry_point"], inputs, record.get("atol", 0))}


def arc(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record and "answerKey" in record:
        return arc_of_the_hub(record, where)
    texts = field(record, "choices", TEXTS, where)
    gold = choice(record, "gold", len(texts), where)
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    question = field(record, "query", TEXT, where).removeprefix(BEFORE)
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


def arc_of_the_hub(record: Record, where: str) -> dict[str, Any]:
    choices = record.get("choices")
    if not isinstance(choices, Mapping):
        raise DataError(
            f"{where}: the field `choices` is {str(choices)[:60]!r}, and not an object of `text` and `label`"
        )
    found = {name: field(choices, name, TEXTS, where) for name in ("text", "label")}
    key = field(record, "answerKey", TEXT, where)
    if key not in found["label"] or len(found["label"]) != len(found["text"]):
        raise DataError(f"{where}: the field `answerKey` is `{key}`, and the labels are {', '.join(found['label'])}")
    return {"question": field(record, "question", TEXT, where), "choices": found, "answerKey": key}


def piqa(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record:
        row = {name: field(record, name, TEXT, where) for name in ("goal", "sol1", "sol2")}
        return row | {"label": choice(record, "label", 2, where)}
    texts = field(record, "choices", TEXTS, where)
    if len(texts) != 2:
        raise DataError(f"{where}: the field `choices` holds {len(texts)} texts, and not 2")
    goal = field(record, "query", TEXT, where).removeprefix(BEFORE).removesuffix("\n")
    return {"goal": goal, "sol1": texts[0], "sol2": texts[1], "label": choice(record, "gold", 2, where)}


def truthfulqa(record: Record, where: str) -> dict[str, Any]:
    """One true answer against all false ones, and all true ones against all false ones."""
    question = field(record, "question", TEXT, where)
    best = field(record, "best_answer", TEXT, where)
    right, wrong = (field(record, f"{name}_answers", TEXTS, where) for name in ("correct", "incorrect"))
    return {
        "question": question,
        "correct_answers": right,
        "incorrect_answers": wrong,
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


TEXT, TEXTS, NUMBER, MANY = "a text", "a list of texts", "a whole number", "a list"


def records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where and what, of each record of a JSON lines, JSON, CSV or Parquet file, packed or not.

    Raises:
        DataError: it cannot be read, or a record is no object.
    """
    found = 0
    for row in sniff(path).rows():
        found += 1
        yield row.where, an_object(row)
    if not found:
        raise DataError(f"`{path}` has no records", hint="a task needs at least one")


def an_object(row: Row) -> Mapping[str, Any]:
    if row.fault is not None or not isinstance(row.record, Mapping):
        raise DataError(f"{row.where}: {row.fault or 'the record is no object with fields'}")
    return row.record


def field(record: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """One field of a record.

    Raises:
        DataError: it is not there, or of another kind.
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


def choice(record: Mapping[str, Any], name: str, choices: int, where: str) -> int:
    """A field that points at one of so many choices, counted from 0."""
    value: int = field(record, name, NUMBER, where)
    if not 0 <= value < choices:
        raise DataError(f"{where}: the field `{name}` is {value}, and there are {choices} choices, counted from 0")
    return value


Rows: TypeAlias = list[dict[str, Any]]
PACKED = ("", ".gz", ".zst")


@dataclass(frozen=True)
class Known:
    """A data set of the hub that a local file can stand for.

    Args:
        split: that is evaluated.
        names: split -> name of its file in a folder, by the hub's name of the subset where that decides.
        row: a record of the file, and where it stands -> a row as the hub has it; None for MMLU's tables.
    """

    split: str
    names: Callable[[str | None], Mapping[str, str]]
    row: Callable[[Record, str], dict[str, Any]] | None


def fixed(**names: str) -> Callable[[str | None], Mapping[str, str]]:
    return lambda _: names


def arc_names(subset: str | None) -> Mapping[str, str]:
    stem = str(subset).lower().replace("-", "_")
    return {"test": f"{stem}.jsonl", "train": f"{stem}_train.jsonl"}


KNOWN: Mapping[str, Known] = {
    "openai/gsm8k": Known("test", fixed(test="gsm8k_test.jsonl", train="gsm8k_train.jsonl"), gsm8k),
    "openai/openai_humaneval": Known("test", fixed(test="humaneval.jsonl"), humaneval),
    "evalplus/humanevalplus": Known("test", fixed(test="humaneval_plus.jsonl"), humaneval_plus),
    "allenai/ai2_arc": Known("test", arc_names, arc),
    "baber/piqa": Known("validation", fixed(validation="piqa.jsonl", train="piqa_train.jsonl"), piqa),
    "truthfulqa/truthful_qa": Known("validation", fixed(validation="truthfulqa.jsonl"), truthfulqa),
    "cais/mmlu": Known("test", fixed(test="mmlu.zip"), None),
}


@dataclass(frozen=True)
class LocalData:
    """Splits of one task, from files.

    Args:
        files: split -> file; MMLU has one for all.
        hub: the hub's name of the data set that they stand for.
        subset: the hub's name of the subset.
    """

    files: Mapping[str, Path]
    hub: str
    subset: str | None

    def rows(self) -> dict[str, Rows]:
        """Split -> rows as the hub has them.

        Raises:
            DataError: a file that is damaged, or has not the fields.
        """
        made = KNOWN[self.hub].row
        if made is None:
            return mmlu_tables(self.files["test"], str(self.subset))
        return {split: [made(one, where) for where, one in records(file)] for split, file in self.files.items()}

    def digest(self) -> dict[str, str]:
        """File -> hash of its bytes."""
        return {str(file): digest(file) for file in self.files.values()}


def find(hub: str, subset: str | None, path: Path, task: str) -> LocalData:
    """The files of a task: the one that is given and, for worked examples, the one beside it.

    Raises:
        SettingsError: no form of local files is known for the task, or there is no such file.
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
    first = path if path.is_file() else packed_or_not(path / names[known.split])
    if first is None:
        raise SettingsError(f"task `{task}`: the folder `{path}` has no `{names[known.split]}`", hint="name the file")
    files = {known.split: first}
    for split in names.keys() - {known.split}:
        beside = [first.with_name(first.name.replace("test", split)), first.with_name(names[split])]
        there = next((one for name in beside if (one := packed_or_not(name)) not in (None, first)), None)
        if there is not None:
            files[split] = there
    return LocalData(files, hub, subset)


def packed_or_not(path: Path) -> Path | None:
    """The file, or the packed one of that name."""
    return next((one for end in PACKED if (one := path.with_name(path.name + end)).is_file()), None)


def digest(path: Path) -> str:
    """Of a file's bytes; of a folder's tables."""
    state = hashlib.blake2b(digest_size=16)
    for file in [path] if path.is_file() else sorted(path.rglob("*.csv")):
        with file.open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


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
