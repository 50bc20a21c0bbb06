"""What a training says before it begins."""

from __future__ import annotations

import pytest

from tithe.lab.tune.recipe import Recipe
from tithe.lab.tune.screen import more_steps


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
    assert more_steps(Recipe(**settings), rows, steps) == words
