from __future__ import annotations

import pytest

from tithe.engine.heads.base import chosen_layers, demand_layers
from tithe.errors import ModelError, SettingsError


@pytest.mark.parametrize(
    ("which", "first", "size"), [("all", 0, 29), ("last", 28, 1), ("front", 0, 9), ("middle", 9, 9), ("back", 18, 11)]
)
def test_thirds_of_29_states(which, first, size):
    assert chosen_layers(which, 29) == tuple(range(first, first + size))


@pytest.mark.parametrize("count", range(3, 40))
def test_thirds_are_all_states(count):
    parts = [chosen_layers(which, count) for which in ("front", "middle", "back")]
    assert sum(parts, ()) == chosen_layers("all", count)
    assert all(parts)


def test_a_shallow_model_has_no_thirds():
    assert chosen_layers("all", 2) == (0, 1)
    with pytest.raises(SettingsError, match="2 hidden states have no `front` third"):
        chosen_layers("front", 2)


def test_an_unknown_choice():
    with pytest.raises(SettingsError, match="no choice of layers `midle`") as caught:
        chosen_layers("midle", 29)
    assert caught.value.hint == "did you mean `middle`?"


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (-1, 0), (2, 3)])
def test_layers_that_are_none(layers):
    with pytest.raises(ModelError, match="are not ascending numbers of 3 hidden states"):
        demand_layers(layers, 3)
