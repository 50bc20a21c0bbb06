"""FLOPs against torch's own counter, and what goes through a model against counting by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.engine.models import VOCABULARY, WINDOW, load, make_pass, plain, run
from tithe.engine.engine import Engine
from tithe.engine.measure.machine import keys_seen, metered
from tithe.engine.measure.shape import attention_flops, idle_parameters, model_shape, windows
from tithe.records import Pass

TOKENS = 24
EVEN = 64  # rows of a pack are filled up to a multiple of it


def config(folder: Path) -> dict[str, Any]:
    return load(folder).model.config.to_dict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3", "gpt2", "mixtral"])
def test_flops_are_those_that_torch_counts(family: Callable[[str], Path], name: str) -> None:
    """Count one sequence with every position scored; the plain model multiplies all query-key pairs."""
    folder = family(name)
    model = plain(folder)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(TOKENS)[None])
    loaded = load(folder)
    settings = loaded.model.config.to_dict()
    weights = [(n, one.numel()) for n, one in loaded.model.named_parameters()]
    shape = model_shape(loaded.source)
    small = sum(
        n for name_, n in weights if name_.endswith(("bias", "wpe.weight")) or "norm" in name_ or "ln_" in name_
    )
    used = shape.parameters - shape.embedding - small - idle_parameters(settings, weights)
    ours = 2 * TOKENS * (used + shape.head) + attention_flops(settings, dict.fromkeys(windows(settings), TOKENS**2))
    # Torch does not count the grouped products of experts: 2 of 4 in each of 2 layers, 32 -> 96 and 48 -> 32.
    experts = 2 * TOKENS * 2 * 2 * (96 * 32 + 48 * 32) if name == "mixtral" else 0
    assert ours == counter.get_total_flops() + experts


def test_a_mixture_uses_some_of_its_experts(family: Callable[[str], Path]) -> None:
    loaded = load(family("mixtral"))
    experts = [(n, one.numel()) for n, one in loaded.model.named_parameters() if ".experts." in n]
    assert experts
    assert idle_parameters(loaded.model.config.to_dict(), experts) == sum(n for _, n in experts) // 2  # 2 of 4
    assert idle_parameters({"num_experts": 4, "num_experts_per_tok": 4}, experts) == 0
    assert idle_parameters({}, experts) == 0


def test_windows_of_layers() -> None:
    plain_ = {"num_hidden_layers": 3, "num_attention_heads": 2}
    assert windows(plain_) == Counter({None: 3})
    assert windows({**plain_, "sliding_window": 8}) == Counter({8: 3})
    assert windows({**plain_, "sliding_window": 8, "use_sliding_window": False}) == Counter({None: 3})
    mixed = ["sliding_attention", "full_attention", "linear_attention"]
    assert windows({**plain_, "sliding_window": 8, "layer_types": mixed}) == Counter({8: 1, None: 1})
    assert windows({"num_hidden_layers": 3}) == Counter()  # recurrent
    assert windows({"text_config": plain_}) == Counter({None: 3})


def test_keys_seen() -> None:
    ids = torch.zeros(1, 6, dtype=torch.int64)
    assert keys_seen(ids, torch.tensor([[0, 1, 2, 0, 3, 4]]), None).tolist() == [[1, 2, 3, 1, 4, 5]]
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert keys_seen(torch.zeros(2, 3), None, mask).tolist() == [[1, 2, 3], [1, 0, 0]]
    assert keys_seen(torch.zeros(2, 3), None, None).tolist() == [[1, 2, 3], [1, 2, 3]]


def different(count: int = 9) -> list[Pass]:
    """Make passes without a shared prefix."""
    rng = np.random.default_rng(1)
    return [make_pass(rng.integers(0, VOCABULARY, n).astype(np.int32), 3) for n in rng.integers(5, 40, count)]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_meter_counts_tokens_and_keys(family: Callable[[str], Path], name: str) -> None:
    loaded, passes = load(family(name)), different()
    assert loaded.forward_path == "packed"
    window = WINDOW if name == "mistral" else None
    engine = Engine(loaded, budget=100, workers=2)
    lengths = [[len(passes[i].ids) - 1 for i in batch.index] for batch in engine.batches(passes)]
    through = [sum(batch) + -sum(batch) % EVEN for batch in lengths]
    by_hand = sum(min(i + 1, window or n) for batch in lengths for n in batch for i in range(n))
    fillers = sum(through) - sum(map(sum, lengths))  # each sees itself
    with metered(loaded) as meter:
        run(engine, passes)
    assert meter.tokens == sum(through) and meter.keys == {window: by_hand + fillers}
    assert meter.backbone_seconds == meter.head_seconds == 0
    with metered(loaded) as other:
        pass
    assert other.tokens == 0 and other.keys == {window: 0}


@pytest.mark.parametrize("forward_path", ["packed", "single"])
def test_a_clock_says_how_long_the_parts_take(family: Callable[[str], Path], forward_path: str) -> None:
    loaded, passes = load(family("llama")), different(3)
    if forward_path == "single":
        loaded.forward_path = forward_path
        loaded.model.set_attn_implementation("sdpa")
    with metered(loaded, clock=True) as meter:
        before = run(Engine(loaded, workers=1), passes)
    assert meter.backbone_seconds > 0 and meter.head_seconds > 0
    seconds = meter.backbone_seconds, meter.head_seconds
    after = run(Engine(loaded, workers=1), passes)
    assert (meter.backbone_seconds, meter.head_seconds) == seconds  # nothing is left behind
    assert "forward" not in vars(loaded.model) and "nll" not in vars(loaded.head)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_clock_is_taken_off_when_something_goes_wrong(family: Callable[[str], Path]) -> None:
    loaded = load(family("llama"))
    with pytest.raises(ZeroDivisionError), metered(loaded, clock=True):
        _ = 1 / 0
    assert loaded.head is not None
    assert not loaded.head.backbone._forward_pre_hooks and "forward" not in vars(loaded.head.backbone)
