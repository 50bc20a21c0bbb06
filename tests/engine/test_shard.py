"""A model spread over several devices reads as on one; what fits nowhere is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.engine.forward.test_states import read
from tests.engine.models import load, random_passes
from tithe.engine import loading
from tithe.engine.engine import Engine
from tithe.engine.forward.path_choice import choose_forward_path
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import device_map, holding_devices, size_text, spread_over
from tithe.engine.measure.shape import model_shape
from tithe.engine.model_source import ModelSource, find_model
from tithe.engine.readouts.base import READOUTS
from tithe.engine.readouts.collect import MeanStates
from tithe.engine.readouts.weighted import Weighted
from tithe.errors import MissingExtraError, ModelError, SettingsError
from tithe.extras import install_hint

Family = Callable[[str], Path]
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))
NLL = READOUTS["nll"]


def hooked(folder: Path) -> Any:
    """Put accelerate's hooks on every module, as if they were on different devices."""
    from accelerate import dispatch_model

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parts = device_map(find_model(str(folder)), torch.float32, {"cpu": 10**9}, False)
    assert parts == {"": "cpu"}
    each = {
        name: "cpu" for name, part in model.named_modules() if not list(part.children()) and list(part.parameters())
    }
    return dispatch_model(model, each, main_device="cpu", force_hooks=True)


def half_on_disk(folder: Path, tmp_path: Path) -> Any:
    """Weights of some modules are offloaded until they are needed."""
    where = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    count = transformers.AutoConfig.from_pretrained(folder).num_hidden_layers
    where |= {f"model.layers.{i}": "cpu" if i == 0 else "disk" for i in range(count)}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=where, offload_folder=str(tmp_path / "elsewhere")
    )


@pytest.mark.parametrize("where", ["hooks", "half on disk"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_parts_apart_read_as_the_whole(family: Family, tmp_path: Path, name: str, where: str) -> None:
    if (name, where) == ("gemma2", "half on disk"):
        pytest.skip("its head is its embedding, which would have to be in two places")
    folder = family(name)
    model = hooked(folder) if where == "hooks" else half_on_disk(folder, tmp_path)
    loaded = LoadedModel(find_model(str(folder)), model.eval(), torch.device("cpu"), torch.float32, "print")
    choose_forward_path(loaded)
    assert loaded.forward_path == load(folder).forward_path == "packed", loaded.fallbacks
    rows = random_passes(12)
    asked = [[NLL, Weighted(), MeanStates()]] * len(rows)
    found, expected = (read(Engine(one, 256, 1), rows, asked) for one in (loaded, load(folder)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-5)
        for what, vector in other.found.items():
            np.testing.assert_allclose(one.found[what], vector, rtol=1e-4, atol=1e-5)


def test_blocks_stay_whole_and_parts_are_even(family: Family) -> None:
    source = find_model(str(family("llama")))
    size = model_shape(source).memory("fp32")
    found = device_map(source, torch.float32, {0: size, 1: size}, False)
    assert set(found.values()) == {0, 1}
    blocks = {part: place for part, place in found.items() if "layers" in part}
    assert all(part.removeprefix("model.layers.").isdigit() for part in blocks)
    model = LoadedModel(source, type("Spread", (), {"hf_device_map": found}), GPUS[0], torch.float32, "print")
    assert holding_devices(model) == ["cuda:0", "cuda:1"]
    with pytest.raises(ModelError, match=r"no device has room for .* \(0\.0 GB on 0, 0\.0 GB on 1\)"):
        device_map(source, torch.float32, {0: size // 4, 1: size // 4}, False)


@pytest.fixture
def source(family: Family) -> ModelSource:
    return find_model(str(family("llama")))


@pytest.mark.parametrize(
    ("free", "wanted", "spread"),
    [
        ((2.0, 2.0), None, False),  # in sizes of the model
        ((1.0, 2.0), None, True),  # 90 % of it are for weights
        ((0.7, 0.7), None, True),
        ((2.0, 2.0), True, True),
        ((0.7, 0.7), False, False),
    ],
)
def test_when_it_is_spread(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, free: Sequence[float], wanted: bool | None, spread: bool
) -> None:
    size = model_shape(source).memory("bf16")
    monkeypatch.setattr(loading, "whole_memory", lambda device: 1.9 * size)
    monkeypatch.setattr(loading, "free_memory", lambda device: free[device.index] * size)
    assert spread_over(source, "bf16", GPUS, wanted) == (GPUS if spread else ())
    assert spread_over(source, "fp8", GPUS, wanted) == (GPUS if spread else ())  # it is read in bf16


def test_a_small_model_asks_for_nobodys_free_memory(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for free memory would create a CUDA context on each GPU in this process, which reads nothing."""
    monkeypatch.setattr(loading, "whole_memory", lambda device: 2 * model_shape(source).memory("bf16"))
    assert spread_over(source, "bf16", GPUS, None) == ()


def test_what_fits_nowhere(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole_memory", "free_memory"):
        monkeypatch.setattr(loading, name, lambda device: 50_000)
    need = size_text(model_shape(source).memory("fp32"))
    with pytest.raises(ModelError, match=f"take {need} in fp32, and cuda:0, cuda:1 have 0.0 GB") as caught:
        spread_over(source, "fp32", GPUS, None)
    assert caught.value.hint


@pytest.mark.parametrize("devices", [GPUS[:1], (torch.device("cpu"),) * 2])
def test_one_gpu_or_none_holds_no_parts(source: ModelSource, devices: Sequence[torch.device]) -> None:
    assert spread_over(source, "fp32", devices, None) == ()
    with pytest.raises(SettingsError, match="`shard` spreads a model over several GPUs, not over"):
        spread_over(source, "fp32", devices, True)


def test_without_accelerate(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loading, "find_spec", lambda name: None if name == "accelerate" else importlib.util.find_spec(name)
    )
    with pytest.raises(MissingExtraError) as caught:
        device_map(source, torch.float32, {0: 10**9}, False)
    assert caught.value.hint == install_hint("large")


def test_an_adapter_is_not_merged_into_parts(source: ModelSource, tmp_path: Path) -> None:
    adapted = ModelSource("mine", source.folder, adapter=tmp_path)
    with pytest.raises(ModelError, match="the adapter `mine` cannot be merged"):
        device_map(adapted, torch.float32, {0: 10**9}, False)
