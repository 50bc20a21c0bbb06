"""Attention over a pack on a CUDA device: the chosen kernel is correct on rows larger than the probe's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo

from tithe.engine.forward.attention import TOLERANCE, Varlen
from tithe.engine.forward.attention_kernels import BY_SEGMENT, Call, by_segment, compiled_flex
from tithe.engine.forward.cuts import Cuts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch's own compiler
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def compile_anew() -> None:
    """A run by itself would not meet so many kinds of calls."""
    torch._dynamo.reset()
    compiled_flex.cache_clear()


@pytest.mark.parametrize("asked", [{}, {"window": 50}, {"softcap": 5.0}], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (32, 8, 128), (4, 4, 64)])
def test_large_rows(heads: int, key_heads: int, dim: int, dtype: torch.dtype, asked: dict[str, Any]) -> None:
    torch.manual_seed(0)
    device, attend = torch.device("cuda"), Varlen()
    for tokens in (3000, 5001):
        lengths = [30]
        while sum(lengths) < tokens:
            lengths.append(min(int(torch.randint(1, 300, ())), tokens - sum(lengths)))
        cuts = Cuts(lengths, [(), *[(slice(0, 30),)] * (len(lengths) - 1)], device)
        query, key, value = (
            torch.randn(1, n, tokens, dim, device=device, dtype=dtype) for n in (heads, *[key_heads] * 2)
        )
        with torch.inference_mode():
            found = attend(query, key, value, cuts, **asked).float()
            truth = by_segment(query.float(), key.float(), value.float(), cuts, Call(dim**-0.5, **asked))
        assert float(((found - truth).abs() / (1 + truth.abs())).max()) <= TOLERANCE[dtype]
    if dtype == torch.bfloat16:
        assert BY_SEGMENT not in attend.chosen.values(), attend.refused
