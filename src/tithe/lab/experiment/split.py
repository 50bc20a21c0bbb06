"""A data set in two: what is chosen from, and what the trained models are judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tithe.data.export import write_records
from tithe.data.files import Dataset
from tithe.data.ids import prompt_id
from tithe.errors import SettingsError
from tithe.records import Example


@dataclass(frozen=True)
class Split:
    """Rows on either side; no prompt stands on both.

    Args:
        pool: rows of the data set to choose from, in order.
        holdout: rows held out, in order.
        prompts: how many different prompts are held out.
        bad_rows: rows that hold no example, on neither side.
    """

    pool: tuple[int, ...]
    holdout: tuple[int, ...]
    prompts: int
    bad_rows: int

    def write(self, dataset: Dataset, pool: Path, holdout: Path) -> None:
        """Both sides as files of the data set's own shape, replacing what is there."""
        write_records(dataset, frozenset(self.pool), pool, overwrite=True)
        write_records(dataset, frozenset(self.holdout), holdout, overwrite=True)


def split_by_prompt(dataset: Dataset, size: int, seed: int) -> Split:
    """Hold out whole prompts, drawn by chance, until so many examples are held out.

    Args:
        dataset: what is split.
        size: examples to hold out, at least; the last prompt drawn may bring a few more.
        seed: of the draw, which depends on the prompts and not on their order in the file.

    Raises:
        SettingsError: nothing would be left to choose from.
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
    keys = sorted(rows)
    held, drawn = set[int](), 0
    for at in np.random.default_rng(seed).permutation(len(keys)).tolist():
        if len(held) >= size:
            break
        held |= set(rows[keys[at]])
        drawn += 1
    pool = sorted({row for own in rows.values() for row in own} - held - bad)
    if not pool:
        raise SettingsError(f"all of `{dataset.source}` would be held out", hint="a smaller `holdout`")
    return Split(tuple(pool), tuple(sorted(held - bad)), drawn, len(bad))
