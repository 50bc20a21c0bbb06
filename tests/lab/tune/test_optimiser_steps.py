"""Batches: the layout of an optimiser step, how many there are, and the order of examples."""

import math
from collections import Counter

import numpy as np
import pytest

from tithe.errors import SettingsError
from tithe.lab.tune.optimiser_steps import Batches, StepOrder, lay_out, steps_in_all
from tithe.lab.tune.settings import TrainingRecipe
from tithe.lab.tune.tune import more_steps


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("each", [None, 1, 2, 16])
def test_a_batch_is_the_same_on_any_number_of_devices(devices, each):
    got = lay_out(TrainingRecipe(per_device_train_batch_size=each), devices, "cuda")
    assert got.devices * got.each * got.passes == 128
    assert each in (None, got.each)


@pytest.mark.parametrize(
    ("recipe", "devices", "message"),
    [
        ({}, 3, "a batch of 128 cannot be divided among 3 devices"),
        ({"per_device_train_batch_size": 3}, 1, "a batch of 128 cannot be made of 1 device of 3"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            2,
            "a batch of 128 cannot be made of 2 devices of 4, 4 times",
        ),
        ({"gradient_accumulation_steps": 3}, 1, "a batch of 128 cannot be made of"),
    ],
)
def test_what_does_not_divide_is_refused(recipe, devices, message):
    with pytest.raises(SettingsError) as caught:
        lay_out(TrainingRecipe(**recipe), devices, "cpu")
    assert message in str(caught.value)


def test_accumulation_alone_settles_the_pass():
    assert lay_out(TrainingRecipe(gradient_accumulation_steps=16), 2, "cpu") == Batches(128, 2, 4)


@pytest.mark.parametrize(
    ("rows", "recipe", "steps"),
    [
        (1000, {}, 24),  # 3 x (7 of 128 and one of 104)
        (128, {}, 3),
        (1, {}, 3),
        (1, {"num_train_epochs": 1, "warmup_ratio": 0}, 1),
        (1, {"num_train_epochs": 1, "lr_scheduler_type": "constant"}, 1),
        (1000, {"num_train_epochs": 0.5}, 4),
        (1000, {"max_steps": 5}, 5),
        (1000, {"max_steps": 500}, 500),
    ],
)
def test_steps_are_counted_by_hand(rows, recipe, steps):
    assert steps_in_all(rows, TrainingRecipe(**recipe)) == steps


@pytest.mark.parametrize("recipe", [{"num_train_epochs": 0}, {"max_steps": 0}])
def test_no_step_at_all_is_refused(recipe):
    with pytest.raises(SettingsError, match="no optimiser step"):
        steps_in_all(10, TrainingRecipe(**recipe))


def order(n, *, step=8, devices=1, each=2, seed=0, blank=None):
    lengths = np.random.default_rng(5).integers(3, 60, n).tolist()
    return StepOrder(lengths, Batches(step, devices, each), seed, blank), lengths


def test_every_epoch_has_every_example_once_and_another_order():
    made, _ = order(29)
    epochs = []
    for epoch in (0, 1):
        made.epoch = epoch
        epochs.append(list(made))
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(range(29))
    assert epochs[0] != epochs[1]


def test_length_decides_the_order_within_a_step_and_not_its_members():
    """The members are a plain draw: steps of like length would be another training."""
    made, lengths = order(64)
    flat = list(made)
    for number in range(8):
        step = flat[8 * number : 8 * number + 8]
        assert [lengths[i] for i in step] == sorted((lengths[i] for i in step), reverse=True)
        assert sorted(step) == sorted(made.taken(number + 1).tolist())
    means = [np.mean([lengths[i] for i in flat[8 * k : 8 * k + 8]]) for k in range(8)]
    assert np.std(means) < np.std(lengths)  # and not sorted through the whole epoch


@pytest.mark.parametrize("n", [29, 32, 7])
def test_devices_get_equal_shares_and_no_example_twice(n):
    made, _ = order(n, devices=2, each=2, blank=n)
    flat = list(made)
    assert len(flat) == len(made) == 4 * math.ceil(n / 4)
    assert Counter(i for i in flat if i != n) == Counter(range(n))


def test_steps_of_later_epochs_are_found_again():
    made, _ = order(20)
    made.epoch = 1
    assert sorted(list(made)[8:16]) == sorted(made.taken(3 + 2).tolist())


@pytest.mark.parametrize("recipe", [{"num_train_epochs": 1}, {"max_steps": 1}])
def test_a_single_step_at_learning_rate_zero_is_refused(recipe):
    """Warm-up begins at 0: a training of one step gives back the model as it was."""
    with pytest.raises(SettingsError, match="begins at learning rate 0"):
        steps_in_all(100, TrainingRecipe(**recipe))


@pytest.mark.parametrize(
    ("settings", "rows", "steps", "words"),
    [
        ({"max_steps": 2}, 3, 2, "`max_steps` is 2"),
        ({"train_batch_size": 128, "num_train_epochs": 3}, 300, 9, "a batch of 32 makes 30"),  # 3 x ceil(300 / 32)
        (
            {"train_batch_size": 128, "num_train_epochs": 3},
            3,
            3,
            "a batch of 1 makes 9, and more epochs or examples make more",
        ),
        ({"train_batch_size": 1, "num_train_epochs": 1}, 5, 5, "more epochs or examples make more"),
    ],
)
def test_what_makes_more_steps(settings: dict[str, int], rows: int, steps: int, words: str) -> None:
    """A way out that would not work is worse than none: three examples make no eight steps of 32."""
    assert more_steps(TrainingRecipe(**settings), rows, steps) == words
