"""Split the data of an experiment: hold examples out, and make the pool that the arms choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tithe.data.counts import RecordCounts, RemarkCounts
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.export import write_records
from tithe.data.ids import prompt_id
from tithe.data.input_check import InputCheck
from tithe.data.render import EncodedExample, Renderer
from tithe.errors import DataError, SettingsError
from tithe.lab.contamination_report import contamination
from tithe.lab.experiment.settings import ExperimentSettings
from tithe.planner import windows, without_details
from tithe.records import BadRow, Example, Pass, Problem
from tithe.report.reporter import Reporter
from tithe.run.source import named_dataset

POOL, HOLDOUT, BEFORE = "pool.jsonl", "holdout.jsonl", "before.jsonl"
TOGETHER = 1024  # examples tokenised in one call


@dataclass(frozen=True)
class Data:
    """The examples that arms choose from, and those they are evaluated on.

    Args:
        pool: the file `data/pool.jsonl`.
        holdout: file of the held-out examples.
        held_out: their ids.
        record: counts and contamination, for the report.
        holdout_columns: the named columns that the file of held-out examples has.
    """

    pool: Pool
    holdout: Path
    held_out: frozenset[str]
    record: dict[str, Any]
    holdout_columns: tuple[str, ...] = ()


def make_data(settings: ExperimentSettings, renderer: Callable[[], Renderer], folder: Path, reporter: Reporter) -> Data:
    """Split the data, find what the pool shares with the evaluation, and write the pool.

    Args:
        settings: of the experiment.
        renderer: the one that training uses.
        folder: for the files.
        reporter: gets messages and progress.

    Raises:
        TitheError: a file cannot be read, or no example is left.
    """
    s = settings
    folder.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(named_dataset(s.dataset), format=s.format, split=s.split, limit=s.limit, columns=s.columns)
    if isinstance(s.holdout, int):
        # The seed is fixed: all seeds of an experiment train and evaluate on the same split.
        split = split_by_prompt(dataset, s.holdout, seed=0)
        holdout, rows = folder / HOLDOUT, split.pool
        split.write(dataset, folder / BEFORE, holdout)
        counts: dict[str, Any] = {"held_out": len(split.holdout), "prompts": split.prompts, "bad_rows": split.bad_rows}
    else:
        holdout = Path(s.holdout)
        rows, counts = rows_without_held_out(dataset, holdout)
        if not rows:
            raise DataError(
                f"every prompt of `{s.dataset}` is in the held-out file `{holdout}`: nothing is left to choose from",
                hint="a number under `holdout` splits the data set by prompt",
            )
        write_records(dataset, frozenset(rows), folder / BEFORE, overwrite=True)
    held, read = open_dataset(str(holdout), columns=s.columns, beside=True), RecordCounts()
    held_out = frozenset(item.id for item in read.counting(held) if isinstance(item, Example))
    # Contamination is searched in what may become the pool, before examples are left out.
    against = [holdout, *map(Path, s.contamination)]
    found = contamination(folder / BEFORE, against, columns=s.columns, reporter=reporter)
    unwanted = dict(found.examples) if s.drop_contaminated else {}
    pool = make_pool(dataset, rows, renderer(), folder / POOL, unwanted)
    (folder / BEFORE).unlink()
    for note in dict.fromkeys((*dataset.notes, *held.notes)):
        reporter.say(note)
    record = {**counts, "pool": len(pool), "left_out": dict(pool.left_out), "contamination": found.record}
    record |= {"dataset": InputCheck(dataset).describe(), "counts": {"pool": pool.counts, "held_out": read.as_dict()}}
    return Data(pool, holdout, held_out, record, held.names.entries)


def rows_without_held_out(dataset: Dataset, holdout: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the rows of the data set whose prompts are not in the held-out file, and counts.

    Raises:
        DataError: the held-out file has no example.
    """
    opened = open_dataset(str(holdout), columns=dataset.names.entries, beside=True)
    held = [item for item in opened if isinstance(item, Example)]
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


@dataclass(frozen=True)
class Pool:
    """The examples that arms choose from, in the order of their file.

    Args:
        path: the file, which holds these examples only.
        ids: (examples,).
        rows: (examples,) rows of the file.
        response_tokens: (examples,) tokens that training reads, after truncation.
        left_out: reason -> how many records are not in the file.
        counts: of the records read, and of their rendering.
        columns: the user's names of columns, as `role=column`.
    """

    path: Path
    ids: tuple[str, ...]
    rows: tuple[int, ...]
    response_tokens: npt.NDArray[np.int64]
    left_out: Mapping[str, int]
    counts: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dataset(self) -> Dataset:
        return open_dataset(str(self.path), columns=self.columns)

    def write(self, chosen: Sequence[int], path: Path) -> None:
        """Write these examples to a file in the pool's order, replacing what is there."""
        write_records(self.dataset, frozenset(self.rows[i] for i in chosen), path, overwrite=True)


def make_pool(
    dataset: Dataset, rows: Collection[int], renderer: Renderer, path: Path, unwanted: Mapping[str, str]
) -> Pool:
    """Write the examples that can be trained on.

    Examples without a forward pass are left out for all arms: an arm that needs no likelihoods could choose them, and
    would then train on fewer examples than the others.

    Args:
        dataset: that the examples come from.
        rows: of the data set, that the pool may have.
        renderer: the one that training uses.
        path: of the pool's file.
        unwanted: id -> reason to leave the example out.

    Raises:
        DataError: no example is left.
    """
    wanted = set(rows)
    read, remarks = RecordCounts(deed="trained on"), RemarkCounts()
    candidates = (item for item in dataset if isinstance(item, BadRow) or item.row in wanted)
    examples = [item for item in read.counting(candidates) if isinstance(item, Example)]
    cuts = Counter(truncated_prompts=0, truncated_responses=0)
    tokens: dict[int, int] = {}
    why: dict[str, int] = {}
    for example, found in zip(examples, training_passes(examples, renderer, remarks), strict=True):
        reason = unwanted.get(example.id) or (without_details(found.reason) if isinstance(found, Problem) else None)
        if reason is not None:
            why[reason] = why.get(reason, 0) + 1
        else:
            assert isinstance(found, Pass)
            tokens[example.row] = found.response_tokens
            cuts.update(truncated_prompts=found.cut_prompt > 0, truncated_responses=found.cut_response > 0)
    if not tokens:
        raise DataError(
            f"no example of `{dataset.source}` can be trained on: {', '.join(f'{r} ({n:,})' for r, n in why.items())}",
            hint="`max_length` and `template` decide what fits",
        )
    write_records(dataset, frozenset(tokens), path, overwrite=True)
    pool = read_pool_file(path, list(tokens.values()), why, dataset.names.entries)
    return replace(pool, counts={**read.as_dict(), **remarks.as_dict(), **cuts})


def read_pool_file(
    path: Path, tokens: Sequence[int], left_out: Mapping[str, int], columns: tuple[str, ...] = ()
) -> Pool:
    """Read the pool's file back: its ids and rows are those of the file, not of the data set."""
    items = [item for item in open_dataset(str(path), columns=columns) if isinstance(item, Example)]
    assert len(items) == len(tokens), "the pool's file holds what was written to it"
    ids, rows = tuple(item.id for item in items), tuple(item.row for item in items)
    return Pool(path, ids, rows, np.array(tokens, dtype=np.int64), dict(left_out), columns=columns)


def training_passes(examples: Sequence[Example], renderer: Renderer, remarks: RemarkCounts) -> list[Pass | Problem]:
    """Return each example's training pass, or why it has none; count remarks on the way."""
    found: list[Pass | Problem] = []
    for chunk in windows(examples, TOGETHER):
        for one in renderer.encode(chunk):
            if isinstance(one, EncodedExample):
                remarks.add(one.remarks)
            found.append(renderer.build("given", one) if isinstance(one, EncodedExample) else one)
    return found


@dataclass(frozen=True)
class Split:
    """The rows of both sides of a split; no prompt is on both.

    Args:
        pool: rows of the data set to choose from, in order.
        holdout: rows held out, in order.
        prompts: how many different prompts are held out.
        bad_rows: how many rows hold no example; they are on neither side.
    """

    pool: tuple[int, ...]
    holdout: tuple[int, ...]
    prompts: int
    bad_rows: int

    def write(self, dataset: Dataset, pool: Path, holdout: Path) -> None:
        """Write both sides in the data set's own shape, replacing what is there."""
        write_records(dataset, frozenset(self.pool), pool, overwrite=True)
        write_records(dataset, frozenset(self.holdout), holdout, overwrite=True)


def split_by_prompt(dataset: Dataset, size: int, seed: int) -> Split:
    """Hold out randomly drawn prompts with all their responses, until at least `size` examples are held out.

    Args:
        dataset: to split.
        size: least number of held-out examples; the last prompt drawn may add a few more.
        seed: random seed; the draw does not depend on the order of the file.

    Raises:
        SettingsError: no example would be left to choose from.
    """
    rows: dict[str, list[int]] = {}
    bad, examples = set[int](), 0
    for item in dataset:
        if isinstance(item, Example):
            rows.setdefault(prompt_id(item.prompt, item.tools), []).append(item.row)
            examples += 1
        else:
            bad.add(item.row)
    if size >= examples:
        raise SettingsError(
            f"{size:,} examples cannot be held out of `{dataset.source}`, which has {examples:,}",
            hint="a smaller `holdout`, or a file of its own",
        )
    # Sorted prompts make the draw independent of the order of the file.
    keys = sorted(rows)
    held, drawn = set[int](), 0
    for at in np.random.default_rng(seed).permutation(len(keys)).tolist():
        if len(held) >= size:
            break
        held |= set(rows[keys[at]])
        drawn += 1
    # A row with a bad turn may hold examples, too; it goes to neither side.
    pool = sorted({row for own in rows.values() for row in own} - held - bad)
    if not pool:
        raise SettingsError(f"all of `{dataset.source}` would be held out", hint="a smaller `holdout`")
    return Split(tuple(pool), tuple(sorted(held - bad)), drawn, len(bad))
