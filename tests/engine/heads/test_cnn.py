"""The convolutional head against torch's own layers, written from the paper's description, and the authors' numbers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.shared import SHARED
from tithe.engine.heads.base import chosen_layers
from tithe.engine.heads.cnn import CnnHead, ResponseCnn, drop, expected_shapes
from tithe.errors import DataError, ModelError

WIDTH = 24
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 19, 3, 1, 40)


class Twin(nn.Module):
    """Run the paper's network on one response, (layers, tokens, width); it shares no code with ours."""

    def __init__(self, layers, width):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(layers, 256, (k, width)) for k in (3, 4, 5)])
        self.deep_convs = nn.ModuleList([nn.Conv1d(256, 256, 3, padding=1) for _ in range(2)])
        self.fc = nn.Sequential(nn.Linear(768, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 2))

    def forward(self, states):
        pooled = []
        for conv, k in zip(self.convs, (3, 4, 5), strict=True):
            short = max(0, k - states.shape[1])
            one = torch.relu(conv(nn.functional.pad(states, (0, 0, 0, short))[None])).squeeze(3)
            for deep in self.deep_convs:
                one = torch.relu(deep(one))
            pooled.append(one.amax(2))
        return self.fc(torch.cat(pooled, 1))[0]


@pytest.fixture(scope="module", params=[1, 3, 4], ids="{} layers".format)
def twin(request):
    with torch.random.fork_rng():
        torch.manual_seed(request.param)
        return Twin(request.param, WIDTH).eval()


def some_states(layers, lengths, width=WIDTH, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(layers, tokens, width, generator=draw) for tokens in lengths]


def head_of(twin):
    layers = twin.convs[0].in_channels
    return CnnHead.of(twin.state_dict(), range(1, layers + 1), layers + 1, WIDTH)


def read(head, states, dtype=torch.float32):
    reader = head.reader([one.shape[1] for one in states])
    for place, layer in enumerate(head.layers):
        reader.take(layer, torch.cat([one[place] for one in states]).to(dtype))
    return torch.from_numpy(head.margins(reader.found().numpy()))


@torch.no_grad()
def slowly(twin, states):
    logits = torch.stack([twin(one) for one in states])
    return logits[:, 1] - logits[:, 0]


def test_it_is_the_network_of_the_paper(twin):
    states = some_states(len(head_of(twin).layers), LENGTHS)
    expected = slowly(twin, states)
    assert expected.std() > 0.005
    assert torch.allclose(read(head_of(twin), states), expected, rtol=0, atol=1e-6)


def test_neighbours_change_nothing(twin):
    head = head_of(twin)
    states = some_states(len(head.layers), LENGTHS)
    together, alone = read(head, states), torch.cat([read(head, [one]) for one in states])
    assert (together - alone).abs().max() < 1e-6
    backwards = read(head, states[::-1]).flip(0)
    assert (together - backwards).abs().max() < 1e-6


def test_bfloat16_is_near_and_margins_stay_float32(twin):
    head = head_of(twin)
    states = some_states(len(head.layers), LENGTHS)
    exact, rough = read(head, states), read(head, states, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.02
    assert head.first_of(torch.bfloat16) is head.first_of(torch.bfloat16)


def test_rows_are_not_kept(twin):
    head = head_of(twin)
    states = some_states(len(head.layers), (4, 6))
    reader, buffer = head.reader([4, 6]), torch.empty(10, WIDTH)
    for place, layer in enumerate(head.layers):
        buffer.copy_(torch.cat([one[place] for one in states]))
        reader.take(layer, buffer)
        buffer.fill_(torch.nan)
    margins = torch.from_numpy(head.margins(reader.found().numpy()))
    assert torch.allclose(margins, slowly(twin, states), rtol=0, atol=1e-6)


def test_training_has_the_same_values_and_gradients(twin):
    exact = copy.deepcopy(twin).double()  # in float32 rounding may move a maximum, and its gradient, to another place
    states = [one.double() for one in some_states(twin.convs[0].in_channels, LENGTHS)]
    ours = ResponseCnn(len(states[0]), WIDTH, torch.Generator())
    ours.load_state_dict(twin.state_dict())
    ours.double()
    targets = torch.arange(len(states)) % 2
    expected, got = torch.stack([exact(one) for one in states]), ours(states)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    for logits in (expected, got):
        nn.functional.cross_entropy(logits, targets).backward()
    for (name, a), (same, b) in zip(ours.named_parameters(), exact.named_parameters(), strict=True):
        assert name == same
        assert b.grad.abs().max() > 0
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12), name


def test_names_and_shapes_are_those_of_the_network():
    shapes = {name: tuple(one.shape) for name, one in Twin(2, 8).state_dict().items()}
    assert expected_shapes(2, 8) == shapes


def test_dropout_draws_from_its_own_numbers():
    before = torch.random.get_rng_state()
    network = ResponseCnn(2, WIDTH, torch.Generator().manual_seed(1))
    states = some_states(2, (5, 9))
    draws = [network(states, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_keeps_half_and_the_mean():
    thinned = drop(torch.ones(20_000), torch.Generator().manual_seed(0))
    assert set(thinned.tolist()) == {0.0, 2.0}
    assert abs(thinned.mean().item() - 1) < 0.03


def test_first_weights_are_as_wide_as_those_of_torch():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = Twin(2, WIDTH).state_dict()
    ours = ResponseCnn(2, WIDTH, torch.Generator().manual_seed(3)).state_dict()
    for name in (name for name in theirs if theirs[name].numel() > 100):
        assert ours[name].abs().max().item() == pytest.approx(theirs[name].abs().max().item(), rel=0.05), name
        assert ours[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
    assert ours["fc.3.bias"].abs().max() < 512**-0.5


def test_a_response_without_a_token_is_refused(twin):
    with pytest.raises(DataError, match="response 2 of 3 has no token"):
        head_of(twin).reader([3, 0, 2])


def test_layers_come_once_and_in_order(twin):
    head = head_of(twin)
    reader = head.reader([2])
    with pytest.raises(AssertionError, match="is next"):
        reader.take(0, torch.zeros(2, WIDTH))
    with pytest.raises(AssertionError, match="rows"):
        reader.take(1, torch.zeros(3, WIDTH))
    with pytest.raises(AssertionError, match="were not given"):
        reader.found()


def test_weights_of_another_model_are_refused():
    state = Twin(2, 8).state_dict()
    with pytest.raises(
        ModelError, match=r"`convs.0.weight` has the shape \(256, 2, 3, 8\), it must have \(256, 2, 3, 9\)"
    ):
        CnnHead.of(state, (0, 1), 2, 9)
    with pytest.raises(ModelError, match=r"needs `fc.0.bias`"):
        CnnHead.of({name: one for name, one in state.items() if name != "fc.0.bias"}, (0, 1), 2, 8)
    with pytest.raises(ModelError, match=r"has no `gamma`"):
        CnnHead.of({**state, "gamma": torch.ones(1)}, (0, 1), 2, 8)
    with pytest.raises(ModelError, match=r"`fc.3.bias` holds values that are not finite numbers"):
        CnnHead.of({**state, "fc.3.bias": torch.tensor([0.0, torch.nan])}, (0, 1), 2, 8)


REFERENCE = SHARED / "reference" / "cpqs"


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.exists(), reason="no ../shared/reference/cpqs beside the checkout")
def test_the_authors_numbers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SHARED / "data" / "weights" / "tinystories-656k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    state = {name: one.float() for name, one in load_file(REFERENCE / "cnn_weights.safetensors").items()}
    head = CnnHead.of(state, chosen_layers("all", 3), 3, 128)
    records = (SHARED / "data" / "sft" / "alpaca_20k.jsonl").read_text().splitlines()
    wanted = [json.loads(line) for line in (REFERENCE / "cnn_scores_200.jsonl").read_text().splitlines()]
    assert len(wanted) == 195
    parts = []
    for one in wanted:
        record = json.loads(records[one["row"]])
        prompt = f"<s> [INST] {record['instruction']}\nInput:{record['input']} [/INST]"
        begin = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(f"{prompt} {record['output']} </s>", return_tensors="pt")["input_ids"]
        assert (begin, ids.shape[1]) == (one["prompt_tokens"], one["total_tokens"])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        parts.append(torch.stack([layer[0, begin:] for layer in states]))  # (3, tokens, 128)
        assert parts[-1].double().sum().item() == pytest.approx(one["hidden_sum"], rel=1e-5, abs=1e-2)
    margins = np.array([one["margin"] for one in wanted])
    alone = np.concatenate([read(head, [part]).numpy() for part in parts])
    together = np.concatenate([read(head, parts[i : i + 16]).numpy() for i in range(0, len(parts), 16)])
    assert np.abs(alone - margins).max() < 1e-5
    assert np.abs(together - margins).max() < 1e-5
