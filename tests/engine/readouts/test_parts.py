"""Mean states of the parts of a pass, by hand, and probes that stay in their own process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tithe.engine.forward.states import ReaderContext
from tithe.engine.readouts.base import View
from tithe.engine.readouts.parts import LAYERS, PartStates, ProbeMargins, part_spans, spread_layers
from tithe.records import Pass, Problem, States, Vector


def pass_of(tokens: int, start: int) -> Pass:
    return Pass(np.arange(tokens, dtype=np.int32), start)


PASSES = [pass_of(5, 2), pass_of(3, 0), pass_of(4, 3)]


def read(passes: list[Pass], states: torch.Tensor) -> list[np.ndarray]:
    """Read states of two layers, the second the negative of the first: (tokens of all, dim)."""
    reader = PartStates().reader(passes, ReaderContext(3, torch.device("cpu"), None))
    reader.take(1, states)
    reader.take(2, -states)
    return [np.asarray(one) for one in reader.results()()]


def test_means_by_hand() -> None:
    """Two components: the token's place in the batch, and its square."""
    rows = torch.tensor([[float(i), float(i * i)] for i in range(12)])
    first, second, third = read(PASSES, rows)
    assert first.shape == (2, 3, 2) and first.dtype == np.float32
    # Tokens 0 to 4, of which two are the prompt.
    assert first[0].tolist() == [[0.5, 0.5], [3.0, pytest.approx((4 + 9 + 16) / 3)], [4.0, 16.0]]
    # Tokens 5 to 7 without a prompt: the response is both.
    assert second[0].tolist() == [[6.0, pytest.approx((25 + 36 + 49) / 3)]] * 2 + [[7.0, 49.0]]
    # Tokens 8 to 11, a response of one token: its mean is its last state.
    assert third[0].tolist() == [[9.0, pytest.approx((64 + 81 + 100) / 3)], [11.0, 121.0], [11.0, 121.0]]
    assert all((one[1] == -one[0]).all() for one in (first, second, third))


def test_a_batch_is_the_passes_one_by_one() -> None:
    states = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    together, start = read(PASSES, states), 0
    for one, found in zip(PASSES, together, strict=True):
        stop = start + len(one.ids)
        assert read([one], states[start:stop])[0].tobytes() == found.tobytes()
        start = stop


def test_half_precision_is_averaged_in_full() -> None:
    """Sums of 5,000 ones in bf16 would stop at 256."""
    ones = torch.ones(5000, 2, dtype=torch.bfloat16)
    assert (np.abs(read([pass_of(5000, 10)], ones)[0]) == 1).all()


@pytest.mark.parametrize("count", [2, 3, 9, 31, 81])
def test_layers_are_from_the_middle_to_the_end(count: int) -> None:
    layers = spread_layers(count)
    assert list(layers) == sorted(set(layers)) and layers[-1] == count - 1 and len(layers) <= LAYERS
    assert layers[0] >= 0.45 * (count - 1) - 0.5


def test_spans_of_the_parts() -> None:
    tokens = list("ppprrr")
    assert [tokens[span] for span in part_spans(3, 6)] == [["p"] * 3, ["r"] * 3, ["r"]]
    assert part_spans(0, 6)[0] == slice(0, 6)


def view(found: object) -> View:
    return View(PASSES[0], np.zeros(3, dtype=np.float32), found)


def test_states_are_stored_flat_and_come_back_in_shape() -> None:
    states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    row = PartStates().read(view(states))
    assert not isinstance(row, Problem)
    answer = PartStates().answer(row)
    assert isinstance(answer, States) and (answer.values == states).all() and answer.values.shape == states.shape
    assert PartStates().read(view(Problem("out of memory"))) == Problem("out of memory")


def test_margins_of_the_probes() -> None:
    readout = ProbeMargins(lambda states: np.array([states.sum(), 0.5]), "abc")
    row = readout.read(view(np.ones((2, 3, 4), dtype=np.float32)))
    assert not isinstance(row, Problem)
    answer = readout.answer(row)
    assert isinstance(answer, Vector) and answer.values.tolist() == [24.0, 0.5]
    assert readout.read(view(Problem("too long"))) == Problem("too long")


def test_probes_are_pickled_without_what_they_have_learned() -> None:
    """A worker process averages states; the function given here could not be pickled."""
    readout = ProbeMargins(lambda states: states.sum(), "abc")
    there = pickle.loads(pickle.dumps(readout))
    assert there.margins is None and there.name == readout.name == "probes-abc"
    assert there.layers(31) == readout.layers(31)


def test_other_probes_have_other_names() -> None:
    """So that their stored answers are not mixed up."""
    assert ProbeMargins(None, "a").name != ProbeMargins(None, "b").name != ProbeMargins().name == "probes-unfitted"
