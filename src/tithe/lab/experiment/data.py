"""The data of an experiment: what is held out, what overlaps with the evaluation, and the pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.data.export import write_records
from tithe.data.files import Dataset, open_dataset
from tithe.data.ids import prompt_id
from tithe.data.input_check import InputCheck
from tithe.data.record_counts import RecordCounts
from tithe.data.render import Renderer
from tithe.errors import DataError
from tithe.lab.contamination_report import contamination
from tithe.lab.experiment.pool import Pool, make_pool
from tithe.lab.experiment.settings import ExperimentSettings
from tithe.lab.experiment.split import split_by_prompt
from tithe.records import Example
from tithe.report.reporter import Talk
from tithe.run.source import named_dataset

POOL, HOLDOUT, BEFORE = "pool.jsonl", "holdout.jsonl", "before.jsonl"


@dataclass(frozen=True)
class Data:
    """What the arms choose from and what they are judged on.

    Args:
        pool: the file `data/pool.jsonl`.
        holdout: the held-out file.
        held_out: ids of its examples.
        record: counts and contamination, for the report.
    """

    pool: Pool
    holdout: Path
    held_out: frozenset[str]
    record: dict[str, Any]


def make_data(settings: ExperimentSettings, renderer: Callable[[], Renderer], folder: Path, talk: Talk) -> Data:
    """Split, look for what the pool shares with the evaluation, and write the pool.

    Args:
        settings: of the experiment.
        renderer: as training will have it.
        folder: for the files.
        talk: who listens.

    Raises:
        TitheError: a file cannot be read, or nothing is left.
    """
    s = settings
    folder.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(named_dataset(s.dataset), format=s.format, split=s.split, limit=s.limit)
    if isinstance(s.holdout, int):
        split = split_by_prompt(dataset, s.holdout, seed=0)
        holdout, rows = folder / HOLDOUT, split.pool
        split.write(dataset, folder / BEFORE, holdout)
        counts: dict[str, Any] = {"held_out": len(split.holdout), "prompts": split.prompts, "bad_rows": split.bad_rows}
    else:
        holdout = Path(s.holdout)
        rows, counts = apart(dataset, holdout)
        if not rows:
            raise DataError(
                f"every prompt of `{s.dataset}` is in the held-out file `{holdout}`: nothing is left to choose from",
                hint="a number under `holdout` splits the data set by prompt",
            )
        write_records(dataset, frozenset(rows), folder / BEFORE, overwrite=True)
    held, read = open_dataset(str(holdout)), RecordCounts()
    held_out = frozenset(item.id for item in read.counting(held) if isinstance(item, Example))
    against = [holdout, *map(Path, s.contamination)]
    found = contamination(folder / BEFORE, against, talk=talk)
    unwanted = dict(found.examples) if s.drop_contaminated else {}
    pool = make_pool(dataset, rows, renderer(), folder / POOL, unwanted)
    (folder / BEFORE).unlink()
    for note in dict.fromkeys((*dataset.notes, *held.notes)):
        talk.say(note)
    record = {**counts, "pool": len(pool), "left_out": dict(pool.left_out), "contamination": found.record}
    record |= {"dataset": InputCheck(dataset).describe(), "counts": {"pool": pool.counts, "held_out": read.as_dict()}}
    return Data(pool, holdout, held_out, record)


def apart(dataset: Dataset, holdout: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Rows of the data set whose prompts the held-out file does not have.

    Raises:
        DataError: the held-out file has no example.
    """
    held = [item for item in open_dataset(str(holdout)) if isinstance(item, Example)]
    prompts = {prompt_id(item.prompt, item.tools) for item in held}
    if not prompts:
        raise DataError(f"`{holdout}` holds no example that could be held out", hint="it is read as training data is")
    rows, same, bad = [], 0, 0
    for item in dataset:
        if not isinstance(item, Example):
            bad += 1
        elif prompt_id(item.prompt, item.tools) in prompts:
            same += 1
        else:
            rows.append(item.row)
    return tuple(rows), {"held_out": len(held), "prompts": len(prompts), "bad_rows": bad, "same_prompt": same}
