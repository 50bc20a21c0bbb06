"""A forward path that is wrong is refused, and the reason is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from tests.engine.models import CONFIGS, GROUPED, load, plain, random_passes, run, save, twin, worst
from tithe.engine.engine import Engine
from tithe.engine.forward import attention
from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.forward.path_choice import probe_passes
from tithe.errors import ModelError

Family = Callable[[str], Path]


def still_true(folder: Path, loaded: Any) -> None:
    passes = random_passes(10)
    model = plain(folder)
    assert worst(run(Engine(loaded, workers=1), passes), [twin(model, pass_) for pass_ in passes]) < 1e-5


def leaking(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **rest: Any) -> Any:
    """Attend causally over the whole row: each sequence sees those before it."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=rest["scaling"])
    return out.transpose(1, 2), None


def test_attention_that_leaks_is_found(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    monkeypatch.setattr(attention, "packed_attention", leaking)
    loaded = load(family("llama"))
    assert (loaded.forward_path, loaded.implementation) == ("padded", "sdpa")
    assert len(loaded.fallbacks) == 1 and loaded.fallbacks[0].startswith("packed (tithe_packed): off by ")
    still_true(family("llama"), loaded)


def test_a_small_leak_is_found_though_bf16_is_coarse(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    """A path off by less than bf16's tolerance, but moved by other sequences: equal shapes round equally."""
    real = attention.packed_attention

    def seeping(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        out, _ = real(module, query, key, value, *rest, **more)
        return out + 0.01 * out.mean(dim=1, keepdim=True), None

    monkeypatch.setattr(attention, "packed_attention", seeping)
    loaded = load(family("llama"), dtype="bf16")
    assert loaded.forward_path == "padded"
    assert "nats" in loaded.fallbacks[0]


def test_a_pack_that_forgets_its_shared_beginning_is_found(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    real = attention.segments
    monkeypatch.setattr("tithe.engine.forward.forward.segments", lambda cuts, attend=None: real(Cuts(cuts.lengths)))
    loaded = load(family("qwen3"))
    assert loaded.forward_path == "padded"
    assert "packed" in loaded.fallbacks[0]


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_head_that_forgets_cap_or_scale_is_found(monkeypatch: pytest.MonkeyPatch, family: Family, name: str) -> None:
    def bare(self: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.shell.lm_head(hidden)
        return logits

    monkeypatch.setattr(OutputHead, "logits", bare)
    loaded = load(family(name))
    assert loaded.forward_path == "single"
    assert len(loaded.fallbacks) == 3
    assert loaded.fallbacks[0].startswith("packed (tithe_packed): off by ")
    still_true(family(name), loaded)


@pytest.mark.parametrize(("name", "backbone"), [("gpt2", "GPT2Model"), ("llama", "LlamaModel")])
def test_a_model_that_ignores_positions_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, family: Family, name: str, backbone: str
) -> None:
    cls = getattr(transformers, backbone)
    real = cls.forward

    def deaf(self: Any, *args: Any, position_ids: Any = None, **rest: Any) -> Any:
        return real(self, *args, **rest)

    monkeypatch.setattr(cls, "forward", deaf)
    loaded = load(family(name))
    assert loaded.forward_path == "padded"
    assert loaded.fallbacks[0].startswith("packed (tithe_packed): off by ")


def test_a_window_that_attention_is_not_told_of_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probe's sequences are shorter than real windows, so numbers alone would not show the error."""
    folder = save(tmp_path / "wide", transformers.MistralConfig(**GROUPED, sliding_window=100))
    real = attention.packed_attention
    assert load(folder).forward_path == "packed"
    monkeypatch.setattr(attention, "packed_attention", lambda *args, sliding_window=None, **rest: real(*args, **rest))
    loaded = load(folder)
    assert loaded.forward_path == "padded"
    assert loaded.fallbacks == [
        "packed (tithe_packed): a sliding window of 100 tokens that the attention is not told of"
    ]


def test_a_head_that_cannot_be_taken_apart_costs_speed_alone(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    def nothing(self: OutputHead, model: Any, loss: str | None) -> None:
        raise AttributeError("no part of the model holds its token embedding")

    monkeypatch.setattr(OutputHead, "__init__", nothing)
    loaded = load(family("llama"))
    assert (loaded.forward_path, loaded.head) == ("single", None)
    assert loaded.fallbacks[0] == "head apart: no part of the model holds its token embedding"
    assert [len(batch.index) for batch in Engine(loaded).batches(probe_passes(100))] == [1] * 6
    still_true(family("llama"), loaded)


def test_an_encoder_with_a_language_head_looks_ahead(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=199, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    for dtype in ("fp32", "bf16"):
        folder = save(tmp_path / dtype, config, model=transformers.BertLMHeadModel)
        with pytest.raises(ModelError, match="sees later tokens: it is not a causal language model") as caught:
            load(folder, dtype=dtype)
        assert caught.value.hint == "its config must say `is_decoder: true`, or it is an encoder"


def test_weights_that_give_no_number_are_an_error(tmp_path: Path) -> None:
    def broken(config: Any) -> Any:
        model = transformers.LlamaForCausalLM(config)
        model.model.norm.weight.data[3] = float("nan")
        return model

    folder = save(tmp_path / "nan", CONFIGS["llama"](), model=broken)
    with pytest.raises(ModelError, match="gives no finite likelihood in float32"):
        load(folder)


def test_a_model_that_rolls_dice_is_an_error(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    real = transformers.LlamaForCausalLM.forward

    def noisy(self: Any, *args: Any, **rest: Any) -> Any:
        out = real(self, *args, **rest)
        out.logits = out.logits + torch.randn_like(out.logits[..., :1, :1])
        out.logits[..., 0] += torch.randn(()) * 5
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", noisy)
    with pytest.raises(ModelError, match=r"sees later tokens|other numbers each time"):
        load(family("llama"))


def test_configs_saved_with_other_outputs_load(tmp_path: Path) -> None:
    config = CONFIGS["llama"]()
    config.return_dict, config.output_hidden_states, config.use_cache = False, True, True
    folder = save(tmp_path / "tuple", config)
    loaded = load(folder)
    assert loaded.forward_path == "packed", loaded.fallbacks
    passes, model = random_passes(10), plain(folder)
    model.config.return_dict = True
    assert worst(run(Engine(loaded, workers=1), passes), [twin(model, pass_) for pass_ in passes]) < 1e-5
