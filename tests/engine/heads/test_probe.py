from __future__ import annotations

import numpy as np
import pytest
import torch

from tithe.engine.heads.probe import ProbeHead, ProbeReader
from tithe.errors import DataError, ModelError

LENGTHS = (1, 2, 7, 1, 30, 64)
LAYERS, WIDTH = (0, 2, 3), 16


@pytest.fixture
def head():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(len(LAYERS), WIDTH, generator=draw)
    return ProbeHead(weight, torch.tensor(0.3), LAYERS, 5, WIDTH)


def some_states(dtype=torch.float32):
    """Make the states of each response: (layers, tokens, width)."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(len(LAYERS), tokens, WIDTH, generator=draw).to(dtype) * 3 for tokens in LENGTHS]


def read(reader, states):
    for place, layer in enumerate(LAYERS):
        reader.take(layer, torch.cat([one[place] for one in states]))
    return reader


def slowly(head, states):
    """Compute it number by number in Python floats."""
    margins = []
    for one in states:
        margin = head.bias.item()
        for place, layer in enumerate(one.tolist()):
            for dim in range(WIDTH):
                mean = sum(token[dim] for token in layer) / len(layer)
                margin += mean * head.weight[place, dim].item()
        margins.append(margin)
    return margins


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_formula(head, dtype):
    states = some_states(dtype)
    got = head.margins(read(head.reader(LENGTHS), states).found().numpy())
    assert got.dtype == np.float32
    assert got.tolist() == pytest.approx(slowly(head, states), rel=1e-5, abs=1e-5)


def test_neighbours_change_nothing(head):
    states = some_states()
    together = head.margins(read(head.reader(LENGTHS), states).found().numpy())
    alone = [read(head.reader([one.shape[1]]), [one]).found().numpy() for one in states]
    assert together.tolist() == [head.margins(one).item() for one in alone]


def test_means_need_no_head():
    states = some_states()
    means = read(ProbeReader(LAYERS, WIDTH, LENGTHS), states).found().numpy()
    assert means.shape == (len(LENGTHS), len(LAYERS), WIDTH)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means[2], states[2].mean(1).numpy(), rtol=1e-6)


def test_one_large_number_does_not_drown_the_others():
    weight, means = torch.ones(1, 64), np.ones((1, 1, 64), dtype=np.float32)
    weight[0, 37] = -1
    means[0, 0, [0, 37]] = 1e8
    head = ProbeHead(weight, torch.tensor(0.0), (0,), 1, 64)
    assert head.margins(means).tolist() == [62.0]


def test_what_does_not_fit_is_refused(head):
    with pytest.raises(ModelError, match=r"`weight` has the shape \(3, 16\), it must have \(3, 17\)"):
        ProbeHead.of(head.weights(), LAYERS, 5, 17)
    with pytest.raises(ModelError, match="needs `bias`"):
        ProbeHead.of({"weight": head.weight}, LAYERS, 5, WIDTH)
    with pytest.raises(DataError, match="response 1 of 1 has no token"):
        head.reader([0])
