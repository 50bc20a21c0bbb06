"""Splitting and drawing: no prompt on both sides, budgets met, lengths repeated, nothing lost."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tithe.data.dataset import open_dataset
from tithe.errors import DataError, SettingsError
from tithe.lab.experiment.arm_choices import (
    Choice,
    arm_table,
    demand_full_budget,
    draw_like_lengths,
    draw_random,
    full_choice,
    overlap,
    read_arm_file,
    selection_settings,
)
from tithe.lab.experiment.cells import distinct_cells, make_cells
from tithe.lab.experiment.conduct import earlier_looks
from tithe.lab.experiment.experiment_data import read_pool_file, rows_without_held_out, split_by_prompt
from tithe.lab.experiment.settings import ArmSettings, ExperimentSettings
from tithe.lab.tune.settings import TrainingRecipe


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def alpaca(n, prompts=None):
    return [
        {"instruction": f"ask {i % (prompts or n)}", "input": "", "output": f"answer {i} " + "word " * (i % 37)}
        for i in range(n)
    ]


@pytest.fixture
def pool(tmp_path):
    path = write(tmp_path / "pool.jsonl", alpaca(400))
    return read_pool_file(path, [3 + i % 37 for i in range(400)], {})


def test_no_prompt_on_both_sides(tmp_path):
    records = alpaca(300, prompts=90)
    dataset = open_dataset(str(write(tmp_path / "d.jsonl", records)))
    split = split_by_prompt(dataset, 60, seed=0)
    asked = [{records[row]["instruction"] for row in rows} for rows in (split.pool, split.holdout)]
    assert not asked[0] & asked[1] and len(asked[1]) == split.prompts
    assert sorted([*split.pool, *split.holdout]) == list(range(300)) and 60 <= len(split.holdout) < 64


def test_white_space_makes_no_other_prompt(tmp_path):
    records = alpaca(120, prompts=60)
    for row in records[60:]:
        row["instruction"] += " "
    split = split_by_prompt(open_dataset(str(write(tmp_path / "d.jsonl", records))), 20, seed=0)
    asked = [{records[row]["instruction"].strip() for row in rows} for rows in (split.pool, split.holdout)]
    assert not asked[0] & asked[1] and split.prompts == 10


def test_the_split_depends_on_prompts_and_not_on_order(tmp_path):
    records = alpaca(200, prompts=80)
    one = split_by_prompt(open_dataset(str(write(tmp_path / "a.jsonl", records))), 40, seed=1)
    turned = split_by_prompt(open_dataset(str(write(tmp_path / "b.jsonl", records[::-1]))), 40, seed=1)
    other = split_by_prompt(open_dataset(str(tmp_path / "a.jsonl")), 40, seed=2)
    asked = [{records[row]["instruction"] for row in one.holdout}]
    asked.append({records[::-1][row]["instruction"] for row in turned.holdout})
    assert asked[0] == asked[1] and one.holdout != other.holdout


def test_bad_rows_are_on_neither_side(tmp_path):
    records = [*alpaca(20), {"instruction": "x", "output": None}]
    split = split_by_prompt(open_dataset(str(write(tmp_path / "d.jsonl", records))), 5, seed=0)
    assert split.bad_rows == 1 and 20 not in (*split.pool, *split.holdout)


@pytest.mark.parametrize("size", [20, 50])
def test_more_held_out_than_there_is(tmp_path, size):
    with pytest.raises(SettingsError, match="cannot be held out"):
        split_by_prompt(open_dataset(str(write(tmp_path / "d.jsonl", alpaca(20)))), size, seed=0)


def test_one_prompt_for_all(tmp_path):
    with pytest.raises(SettingsError, match="all of"):
        split_by_prompt(open_dataset(str(write(tmp_path / "d.jsonl", alpaca(20, prompts=1)))), 5, seed=0)


def test_a_held_out_file_takes_its_prompts_from_the_pool(tmp_path):
    records = alpaca(50)
    held = write(tmp_path / "h.jsonl", [records[3], {**records[7], "output": "another answer"}])
    rows, counts = rows_without_held_out(open_dataset(str(write(tmp_path / "d.jsonl", records))), held)
    assert sorted(set(range(50)) - set(rows)) == [3, 7] and counts["same_prompt"] == 2 and counts["held_out"] == 2


def test_random_draws_differ_by_seed_and_repeat(pool):
    one, again, other = (
        draw_random("r", "10%", 0, pool),
        draw_random("r", "10%", 0, pool),
        draw_random("r", "10%", 1, pool),
    )
    assert one.places == again.places != other.places and len(one.places) == 40
    assert list(one.places) == sorted(set(one.places))


def test_random_by_tokens_spends_the_budget(pool):
    taken = draw_random("r", "500-tokens", 0, pool)
    assert 460 < pool.response_tokens[list(taken.places)].sum() <= 500


def test_every_example_is_as_likely(pool):
    counts = np.zeros(400)
    for seed in range(400):
        counts[list(draw_random("r", "25%", seed, pool).places)] += 1
    assert abs(counts.mean() - 100) < 1e-9 and counts.min() > 60 and counts.max() < 140  # 100 +- 4.6 deviations of 8.7


def test_lengths_are_repeated(pool):
    longest = np.argsort(-pool.response_tokens, kind="stable")[:160]
    long = Choice("long", "10%", None, tuple(sorted(longest[::4].tolist())))
    drawn = [draw_like_lengths("like", long, seed, pool) for seed in range(3)]
    wanted = pool.response_tokens[list(long.places)].mean()
    for one in drawn:
        assert len(one.places) == 40
        assert pool.response_tokens[list(one.places)].mean() == pytest.approx(wanted, abs=1.5)
    assert drawn[0].places != drawn[1].places
    assert abs(pool.response_tokens.mean() - wanted) > 8  # where a plain draw would be


def test_where_an_arm_takes_all_of_a_length_there_is_nothing_else_to_draw(pool):
    longest = Choice("long", "10%", None, tuple(np.argsort(-pool.response_tokens, kind="stable")[:40].tolist()))
    assert overlap(draw_like_lengths("like", longest, 0, pool), longest) > 0.9  # which `table` says


def test_too_few_are_refused_unless_allowed(pool):
    few = Choice("x", "10%", None, tuple(range(30)))
    arm = ArmSettings(name="x", kind="scored")
    with pytest.raises(SettingsError, match="selected 30 examples at 10%, the others have 40"):
        demand_full_budget(arm, few, pool)
    assert demand_full_budget(arm.model_copy(update={"allow_fewer": True}), few, pool) is few
    with pytest.raises(SettingsError, match="selected nothing"):
        demand_full_budget(arm, Choice("x", "10%", None, ()), pool)


def test_a_file_of_its_own(pool, tmp_path):
    records = [json.loads(line) for line in pool.path.read_text().splitlines()]
    write(tmp_path / "kept-10%.jsonl", records[:40])
    arm = ArmSettings(name="mine", kind="file", file=str(tmp_path / "kept-{budget}.jsonl"))
    assert read_arm_file(arm, "10%", pool, {}).places == tuple(range(40))
    write(tmp_path / "kept-10%.jsonl", [*records[:39], {"instruction": "new", "input": "", "output": "no"}])
    with pytest.raises(DataError, match=r"1 of 40 examples .* are not in the pool, 0 of them are held out"):
        read_arm_file(arm, "10%", pool, {})


def test_an_arms_settings_win_over_those_of_all(pool):
    settings = ExperimentSettings.of(
        {
            "dataset": "d",
            "model": "m",
            "max_length": 256,
            "scoring": {"max_length": 512, "dtype": "fp32"},
            "arms": {
                "random": None,
                "ifd": None,
                "far": {"scorer": "ifd", "max_length": 1024},
                "p": {"preset": "cherry"},
            },
        }
    )
    found = {arm.name: arm for arm in settings.arms}
    assert selection_settings(found["ifd"], "5%", pool, settings).max_length == 512
    assert selection_settings(found["far"], "5%", pool, settings).max_length == 1024
    preset = selection_settings(found["p"], "5%", pool, settings)
    assert preset.template == "alpaca" and preset.keep == "5%" and preset.dataset == str(pool.path)


def test_the_table_says_steps_and_which_arms_are_one(pool):
    settings = ExperimentSettings.of({"dataset": "d", "model": "m", "arms": {"a": None, "b": None, "random": None}})
    own = Choice("a", "10%", None, tuple(range(40)))
    choices = {
        ("a", "10%"): [own],
        ("b", "10%"): [replace(own, arm="b")],
        ("random", "10%"): [draw_random("r", "10%", 0, pool)],
    }
    rows = arm_table(choices, pool, settings, TrainingRecipe(train_batch_size=16, num_train_epochs=2))
    assert [row["same_as"] for row in rows] == [None, "a", None]
    assert [row["steps"] for row in rows] == [6, 6, 6]  # three batches of 40 examples, twice
    assert rows[0]["shared_with_random"] == overlap(own, choices["random", "10%"][0])


def test_verdicts_drawn_before_from_fewer_seeds_are_remembered(tmp_path):
    path = tmp_path / "experiment.json"
    assert earlier_looks(path, 3) == []
    path.write_text(json.dumps({"settings": {"seeds": [0, 1, 2]}}))
    assert earlier_looks(path, 3) == [] and earlier_looks(path, 5) == [3]
    path.write_text(json.dumps({"settings": {"seeds": [0, 1, 2, 3, 4]}, "earlier_looks": [3]}))
    assert earlier_looks(path, 5) == [3] and earlier_looks(path, 6) == [3, 5]


def test_cells_that_see_the_same_are_trained_once(pool):
    full, half = full_choice("full", pool), Choice("a", "50%", None, tuple(range(200)))
    twin, drawn = Choice("b", "50%", None, tuple(range(200))), [draw_random("r", "50%", s, pool) for s in (0, 1, 2)]
    choices = {("full", "100%"): [full], ("a", "50%"): [half], ("b", "50%"): [twin], ("r", "50%"): drawn}
    cells = make_cells(choices, (0, 1, 2), "base")
    assert len(cells) == 13 and len(distinct_cells(cells)) == 10
    assert [cell.name for cell in cells[:3]] == ["base", "full-100%-seed0", "a-50%-seed0"]  # whole seeds, largest first
    assert overlap(half, full) == 1 and overlap(full, half) == 0.5
