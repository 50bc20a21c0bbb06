"""The engine's equalities, on a CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.models import CONFIGS, load, make_pass, plain, random_passes, run, save, twin, worst
from tithe.engine.devices import choose_device, choose_dtype, multiplies_fp8
from tithe.engine.engine import OUT_OF_MEMORY, Engine
from tithe.engine.forward.attention_kernels import BY_SEGMENT
from tithe.engine.measure.fused import fuse, why_not_compilable
from tithe.errors import SettingsError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch's own compiler
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "gpt-neox", "bloom", "mixtral", "mamba"]


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_equals_the_models_own_forward_on_the_cpu(name: str, tmp_path: Path) -> None:
    folder, passes = save(tmp_path / name, CONFIGS[name]()), random_passes()
    loaded = load(folder, device="cuda")
    assert loaded.forward_path in ("packed", "padded"), loaded.fallbacks
    model = plain(folder)
    wanted = [twin(model, pass_) for pass_ in passes]
    assert worst(run(Engine(loaded, budget=300), passes), wanted) < 1e-4  # other kernels, not only another order


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2), ("fp16", 5e-3)])
def test_any_budget(tmp_path: Path, dtype: str, tolerance: float) -> None:
    folder, passes = save(tmp_path / "llama", CONFIGS["llama"]()), random_passes()
    loaded = load(folder, dtype, device="cuda")
    alone = [loaded.nll([pass_])[0].astype(np.float64).tolist() for pass_ in passes]
    for budget in (1, 64, 10_000):
        assert worst(run(Engine(loaded, budget=budget), passes), alone) < tolerance, budget


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_packs_are_read_in_one_call(name: str, tmp_path: Path) -> None:
    """Check bf16, if there is a kernel for it: the budget comes from free memory, and parts are compiled."""
    folder, passes = save(tmp_path / name, wide(CONFIGS[name]())), random_passes()
    loaded = load(folder, "bf16", device="cuda")
    assert loaded.forward_path == "packed" and loaded.attend is not None, loaded.fallbacks
    assert BY_SEGMENT not in loaded.attend.chosen.values()
    other = load(folder, "bf16", device="cuda", forward_paths=(("single", None),))
    alone = [other.nll([pass_])[0].astype(np.float64).tolist() for pass_ in passes]
    engine = Engine(loaded)
    assert (
        engine.memory_budget is not None and engine.memory_budget.per_token and 1024 <= (engine.budget or 0) <= 32_768
    )
    assert worst(run(engine, passes), alone) < 2e-2
    if why_not_compilable(loaded.device) is None:
        assert fuse(loaded).why_not is None, loaded.fused
        assert worst(run(Engine(loaded, budget=300), passes), alone) < 2e-2


def test_fp8_is_as_far_from_bf16_as_it_says(tmp_path: Path) -> None:
    folder, passes = save(tmp_path / "llama", wide(CONFIGS["llama"]())), random_passes()
    if not multiplies_fp8(torch.device("cuda")):
        pytest.skip("no fp8 units")
    other = load(folder, "bf16", device="cuda")
    engine = Engine(load(folder, "fp8", device="cuda"), compiled=why_not_compilable(torch.device("cuda")) is None)
    found = {i: one for batch, out in engine.run(passes, engine.batches(passes))
             for i, one in zip(batch.index, out, strict=True)}  # fmt: skip
    fp8, parts = engine.model.fp8, engine.model.fused
    assert fp8 is not None and fp8.held.layers == 14 and fp8.error.passes > 2
    assert parts is None or parts.why_not is None, parts
    assert parts is None or (parts.parts["fp8 layers"] == 8 and parts.parts["MLPs"] == 2)
    for i, pass_ in enumerate(passes):
        nll = other.nll([pass_])[0]
        assert len(found[i]) == len(nll)
        if len(nll):
            assert abs(float(found[i].mean() - nll.mean())) <= fp8.error.largest + 2e-2, i


def wide(config: Any) -> Any:
    """Make a model whose heads have a size that kernels support."""
    config.hidden_size, config.head_dim, config.query_pre_attn_scalar = 256, 64, 64
    return config


def test_out_of_memory_is_a_problem_of_one_pass(tmp_path: Path) -> None:
    """Limit memory for real, so that a short sequence fits and a long one does not."""
    config = CONFIGS["gpt-neox"]()
    config.max_position_embeddings, config.intermediate_size = 200_000, 16_384
    loaded = load(save(tmp_path / "wide", config), device="cuda")
    engine = Engine(loaded, budget=1_000_000)
    rng = np.random.default_rng(0)
    passes = [make_pass(rng.integers(0, 199, n), 1) for n in (150_000, 500, 400)]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e9) / total)
    try:
        found = {i: r for batch, out in engine.run(passes, engine.batches(passes))
                 for i, r in zip(batch.index, out, strict=True)}  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found[0] == OUT_OF_MEMORY
    assert [len(found[i]) for i in (1, 2)] == [499, 399]
    assert engine.halved > 0


def test_devices_and_dtypes() -> None:
    assert choose_device("auto").type == "cuda"
    assert choose_dtype("auto", torch.device("cuda")) in (torch.bfloat16, torch.float16)
    with pytest.raises(SettingsError, match="there is no device `cuda:99`"):
        choose_device("cuda:99")
