from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.errors import DataError, SettingsError
from tithe.lab.heads.tier_data import demand_disjoint, split_by_prompt


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80).filter(lambda rows: len(set(rows)) >= 3), st.integers(0, 9)
)
def test_a_prompt_is_on_one_side_and_every_row_on_one(groups, seed):
    split = split_by_prompt(groups, seed=seed)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(groups)))
    demand_disjoint(groups, split)
    assert all(len(rows) for rows in split.values())


def test_shares_are_of_prompts():
    groups = np.repeat(np.arange(100), 3)
    sizes = {name: len(rows) for name, rows in split_by_prompt(groups, seed=0).items()}
    assert sizes == {"train": 240, "validation": 30, "test": 30}


def test_the_order_of_rows_moves_no_prompt():
    groups = np.array([f"prompt {i % 40}" for i in range(120)])
    mixed = np.random.default_rng(0).permutation(120)
    first, second = split_by_prompt(groups, seed=3), split_by_prompt(groups[mixed], seed=3)
    for name in first:
        assert set(groups[first[name]]) == set(groups[mixed][second[name]])
    assert set(groups[first["test"]]) != set(groups[split_by_prompt(groups, seed=4)["test"]])


def test_a_side_without_a_share_is_empty():
    split = split_by_prompt(range(10), shares=(0.7, 0.3), names=("train", "test"), seed=0)
    assert {name: len(rows) for name, rows in split.items()} == {"train": 7, "test": 3}
    assert len(split_by_prompt(range(10), shares=(0.5, 0, 0.5), seed=0)["validation"]) == 0


def test_shares_and_prompts_that_cannot_be():
    with pytest.raises(SettingsError, match="are not parts of 1"):
        split_by_prompt(range(10), shares=(0.8, 0.1, 0.2), seed=0)
    with pytest.raises(DataError, match="2 prompts cannot be split into 3 sides"):
        split_by_prompt([1, 1, 2], seed=0)


def test_a_prompt_on_two_sides_is_refused():
    groups = np.array(["a", "b", "a", "c"])
    demand_disjoint(groups, {"train": [0, 2], "test": [1, 3]})
    with pytest.raises(DataError, match=r"1 prompts are in `train` and in `test`, e.g. `a`"):
        demand_disjoint(groups, {"train": [0, 1], "test": [2, 3]})
