"""Local files of tasks that lm-eval reads from the hub: its own rows, made of what such files hold.

Prompts, filters and metrics stay lm-eval's; only the data set is given by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tithe.errors import SettingsError
from tithe.lab.evaluate import rows
from tithe.lab.evaluate.fields import records
from tithe.lab.evaluate.tables import mmlu_tables

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
    row: Callable[[rows.Record, str], dict[str, Any]] | None


def fixed(**names: str) -> Callable[[str | None], Mapping[str, str]]:
    return lambda _: names


def arc_names(subset: str | None) -> Mapping[str, str]:
    stem = str(subset).lower().replace("-", "_")
    return {"test": f"{stem}.jsonl", "train": f"{stem}_train.jsonl"}


KNOWN: Mapping[str, Known] = {
    "openai/gsm8k": Known("test", fixed(test="gsm8k_test.jsonl", train="gsm8k_train.jsonl"), rows.gsm8k),
    "openai/openai_humaneval": Known("test", fixed(test="humaneval.jsonl"), rows.humaneval),
    "evalplus/humanevalplus": Known("test", fixed(test="humaneval_plus.jsonl"), rows.humaneval_plus),
    "allenai/ai2_arc": Known("test", arc_names, rows.arc),
    "baber/piqa": Known("validation", fixed(validation="piqa.jsonl", train="piqa_train.jsonl"), rows.piqa),
    "truthfulqa/truthful_qa": Known("validation", fixed(validation="truthfulqa.jsonl"), rows.truthfulqa),
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
