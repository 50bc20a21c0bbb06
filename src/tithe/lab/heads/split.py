"""Sides for training and judging: a prompt is on one side alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError

SIDES = ("train", "validation", "test")
Rows: TypeAlias = npt.NDArray[np.int64]
Groups: TypeAlias = Sequence[Any] | npt.NDArray[Any]


def split_by_prompt(
    groups: Groups, *, shares: Sequence[float] = (0.8, 0.1, 0.1), names: Sequence[str] = SIDES, seed: int
) -> dict[str, Rows]:
    """Rows of each side, ascending; all rows of a prompt are on one.

    Args:
        groups: the prompt of each row, by any name.
        shares: of the prompts, for each side; their sum is 1. A side with a share has at least one prompt.
        names: of the sides.
        seed: the same prompts and seed give the same sides, in whatever order the rows are.

    Raises:
        SettingsError: shares that are none.
        DataError: fewer prompts than sides.
    """
    if len(shares) != len(names) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingsError(
            f"the shares {list(shares)} of {', '.join(names)} are not parts of 1", hint="for example 0.8, 0.1, 0.1"
        )
    prompts, of_row = np.unique(np.asarray(groups), return_inverse=True)
    wanted = sum(share > 0 for share in shares)
    if len(prompts) < wanted:
        raise DataError(f"{len(prompts)} prompts cannot be split into {wanted} sides", hint="label more prompts")
    sizes = whole_parts(len(prompts), shares)
    side_of_prompt = np.empty(len(prompts), dtype=np.int64)
    side_of_prompt[np.random.default_rng(seed).permutation(len(prompts))] = np.repeat(np.arange(len(names)), sizes)
    return {name: np.flatnonzero(side_of_prompt[of_row] == side) for side, name in enumerate(names)}


def whole_parts(total: int, shares: Sequence[float]) -> list[int]:
    """The total in whole numbers: largest remainders, then one for every share from the largest part."""
    exact = np.array(shares) * total
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    for place in np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]:
        sizes[place] += 1
    for place, share in enumerate(shares):
        if share > 0 and sizes[place] == 0:
            sizes[np.argmax(sizes)] -= 1
            sizes[place] = 1
    return [int(size) for size in sizes]


def demand_disjoint(groups: Groups, split: Mapping[str, npt.ArrayLike]) -> None:
    """Refuse a split where a prompt is on two sides: a head would be judged on what it was trained on.

    Args:
        groups: the prompt of each row.
        split: rows of each side, by its name.

    Raises:
        DataError: with the prompt and both sides.
    """
    names = np.asarray(groups)
    sides = [(side, set(names[np.asarray(rows, dtype=np.int64)].tolist())) for side, rows in split.items()]
    for place, (side, prompts) in enumerate(sides):
        for other, others in sides[:place]:
            if both := prompts & others:
                raise DataError(
                    f"{len(both)} prompts are in `{other}` and in `{side}`, e.g. `{str(min(both, key=str))[:60]}`",
                    hint="split by prompt: a head is judged on prompts it never saw",
                )
