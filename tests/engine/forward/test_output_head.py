"""The output head in tiles against the whole product, and which heads may be computed in tiles."""

import copy

import pytest
import torch
import transformers

from tests.engine.models import CONFIGS
from tithe.engine.forward import output_head
from tithe.engine.forward.output_head import TILE_VOCABULARY, OutputHead, tiled_nll, token_nll


def llama():
    return transformers.LlamaForCausalLM(CONFIGS["llama"]()).eval()


@pytest.mark.parametrize("vocabulary", [7, TILE_VOCABULARY, TILE_VOCABULARY + 1, 3 * TILE_VOCABULARY + 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_give_what_the_whole_product_gives(vocabulary, bias, dtype):
    generator = torch.Generator().manual_seed(vocabulary)
    matrix = torch.nn.Linear(16, vocabulary, bias=bias).to(dtype)
    with torch.inference_mode():
        matrix.weight.copy_(torch.randn(vocabulary, 16, generator=generator))
        hidden = torch.randn(50, 16, generator=generator).to(dtype)
        targets = torch.randint(0, vocabulary, (50,), generator=generator)
        targets[:2] = torch.tensor([0, vocabulary - 1])
        logits = (hidden @ matrix.weight.T).add_(matrix.bias) if bias else hidden @ matrix.weight.T
        wanted = -torch.log_softmax(logits.double(), dim=-1)[torch.arange(50), targets]
        got = tiled_nll(hidden, matrix, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_logits_beyond_what_exp_can_hold():
    matrix = torch.nn.Linear(1, TILE_VOCABULARY + 5, bias=False)
    with torch.inference_mode():
        matrix.weight.copy_(torch.linspace(-3e4, 3e4, TILE_VOCABULARY + 5)[:, None])
        hidden, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([TILE_VOCABULARY + 4, 3])
        torch.testing.assert_close(
            tiled_nll(hidden, matrix, targets), token_nll(matrix(hidden), targets), rtol=1e-5, atol=1e-5
        )


def test_a_head_that_is_more_than_one_product_is_run_as_it_is():
    model = llama()
    assert OutputHead(model).matrix is model.get_output_embeddings()

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.0001
            return out

    class Capped(type(model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = torch.tanh(out.logits / 50) * 50
            return out

    for kind in (Scaled, Capped):
        other = copy.copy(model)
        other.__class__ = kind
        assert OutputHead(other).matrix is None


def test_both_ways_through_a_head_agree():
    head = OutputHead(llama())
    width = head.matrix.in_features
    hidden = torch.randn(70, width, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(70) % head.vocabulary
    with torch.inference_mode():
        tiled = head.nll(hidden, targets)
        head.matrix = None
        torch.testing.assert_close(tiled, head.nll(hidden, targets), rtol=1e-5, atol=1e-6)
    assert len(tiled) == 70 > 2 * output_head.EVEN
