"""Weights in fp8: their values by hand, the layer against a plain product, and the error that is stated.

A CPU's own fp8 product stands in for a GPU's here; outside of tests it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.engine.models import load, make_pass, random_passes, run
from tithe.engine import devices
from tithe.engine.devices import E4M3, choose_dtype
from tithe.engine.engine import Engine
from tithe.engine.measure import fp8, fp8_error, fused
from tithe.engine.measure.fp8 import Fp8Linear, linear_layers, quantised
from tithe.engine.measure.shape import model_shape
from tithe.engine.readouts.pooled import pooled_vectors
from tithe.engine.store.store import answers_name
from tithe.errors import ModelError, SettingsError
from tithe.run.engines import engine_record, engine_sentence

Family = Callable[[str], Path]
# Every finite e4m3 above 0 from its definition: 3 bits of mantissa, exponents to 8, the last code is NaN.
GRID = sorted(
    {(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)} - {480.0} | {m * 2.0**-9 for m in range(8)}
)


@pytest.fixture
def fp8_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "multiplies_fp8", lambda device: True)


def by_hand(row: list[float]) -> list[float]:
    """Quantise a row to the nearest e4m3 numbers with one scale."""
    scale = max(map(abs, row)) / 448
    return [float(np.copysign(min(GRID, key=lambda one: abs(one - abs(v / scale))), v)) * scale for v in row]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=9))
def test_a_row_is_held_to_the_nearest_of_its_grid(row: list[float]) -> None:
    held, scale = quantised(torch.tensor([row]))
    assert held.dtype == E4M3 and scale.shape == (1, 1)
    got = (held.double() * scale.double())[0]
    wanted = torch.tensor(by_hand(row), dtype=torch.float64)
    original = torch.tensor(row, dtype=torch.float64)
    # ties apart, which are as near on both sides
    torch.testing.assert_close((got - original).abs(), (wanted - original).abs(), rtol=1e-4, atol=1e-4 * float(scale))


def test_zeros_stay_zeros_and_what_is_not_finite_does_not_become_a_number() -> None:
    held, scale = quantised(torch.tensor([[0.0, -0.0], [1.0, float("inf")], [float("nan"), 1.0]]))
    back = held.float() * scale
    assert back[0].tolist() == [0, 0]
    assert not torch.isfinite(back[1]).all() and not torch.isfinite(back[2]).all()


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_product_of_what_is_held(bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32, bias=bias).to(torch.bfloat16)
    hidden = torch.randn(3, 5, 48).to(torch.bfloat16) * torch.logspace(-2, 2, 5)[None, :, None].to(torch.bfloat16)
    with torch.inference_mode():
        got = Fp8Linear(linear)(hidden)
    rows = torch.tensor([by_hand(row) for row in hidden.flatten(0, 1).double().tolist()])
    weight = torch.tensor([by_hand(row) for row in linear.weight.double().tolist()])
    wanted = (rows @ weight.T + (linear.bias.detach().double() if bias else 0)).view(3, 5, 32)
    assert got.dtype == torch.bfloat16
    assert float((got.double() - wanted).norm() / wanted.norm()) < 4e-3  # bf16 of the result, and ties


def test_a_token_is_read_alike_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    layer, rows = Fp8Linear(torch.nn.Linear(32, 32).to(torch.bfloat16)), torch.randn(8, 32).to(torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(layer(rows)[2], layer(torch.cat([rows[:3], 1e4 * rows[3:]]))[2])


def test_where_a_device_has_no_fp8_units_nothing_takes_their_place() -> None:
    with pytest.raises(SettingsError, match=r"`fp8` needs an NVIDIA GPU .*, and `cpu` is none") as caught:
        choose_dtype("fp8", torch.device("cpu"))
    assert "bf16" in str(caught.value.hint)


@pytest.mark.parametrize(("capability", "there"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_which_gpus_have_them(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.multiplies_fp8(torch.device("cuda")) is there


@pytest.mark.usefixtures("fp8_units")
def test_auto_never_takes_it() -> None:
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.usefixtures("fp8_units")
def test_the_error_that_is_stated_is_that_of_two_models(family: Family) -> None:
    passes = random_passes(40)
    said: list[str] = []
    engine = Engine(load(family("llama"), "fp8"), budget=300, workers=1, say=said.append)
    assert engine.model.fp8 is None and not said
    found = run(engine, passes)
    told = engine.model.fp8
    assert told is not None and said == [told.words()]

    scored = [i for i, nll in enumerate(found) if len(nll)]
    plain, sample = load(family("llama"), "bf16"), [passes[i] for i in scored]
    before, after = (fp8_error.means(model, sample, 300) for model in (plain, engine.model))
    alone = np.array([plain.nll([one])[0].mean(dtype=np.float64) for one in sample])
    assert np.abs(before - alone).max() < 0.02  # bf16 rounds differently in a batch
    error = told.error
    assert error.passes == len(scored) and error.tokens == sum(len(found[i]) for i in scored)
    assert error.mean == pytest.approx(np.abs(after - before).mean()) and error.mean > 0
    assert error.largest == pytest.approx(np.abs(after - before).max())
    assert error.shift == pytest.approx((after - before).mean())
    assert error.rank_correlation == pytest.approx(spearmanr(before, after).statistic) and error.rank_correlation > 0.9
    run(engine, passes)
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fp8_units")
@pytest.mark.parametrize("more", [1.25, 0.0])
def test_compiled_in_fp8_it_is_held_against_bf16(more: float, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are traced, not compiled; those further from bf16 would be removed again."""
    torch._dynamo.reset()
    monkeypatch.setattr(fp8_error, "MORE", more)
    monkeypatch.setattr(fp8_error, "FLOOR", 1e-3 if more else -1.0)
    monkeypatch.setattr(fp8_error, "fuse", partial(fused.fuse, backend="eager"))
    passes, said = random_passes(20), list[str]()
    engine = Engine(load(family("llama"), "fp8"), budget=300, workers=1, compiled=True, say=said.append)
    found = run(engine, passes)
    parts, told = engine.model.fused, engine.model.fp8
    assert parts is not None and told is not None and len(said) == 2
    sample = [one for one, nll in zip(passes, found, strict=True) if len(nll)]
    before, after = (fp8_error.means(model, sample, 300) for model in (load(family("llama"), "bf16"), engine.model))
    assert told.error.mean == pytest.approx(np.abs(after - before).mean())
    if more:
        assert parts.parts == {"norms": 5, "MLPs": 2, "rotations": 2, "fp8 layers": 8} and parts.why_not is None
        assert said[1].startswith("fp8: ") and all(kind in said[1] for kind in parts.parts)
    else:
        assert parts.parts == {} and parts.why_not is not None and parts.why_not.startswith("off from bf16 by ")
    torch._dynamo.reset()


@pytest.mark.usefixtures("fp8_units")
def test_only_the_products_of_the_blocks_are_held_in_it(family: Family) -> None:
    loaded = load(family("llama"), "fp8")
    before = sum(w.numel() for w in loaded.model.parameters())
    linear = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)  # q and o, k and v, the gated block; of two layers
    rows = 2 * (32 * 2 + 16 * 2 + 48 * 2 + 32)
    run(Engine(loaded, workers=1), random_passes(6))
    held = loaded.fp8.held  # type: ignore[union-attr]
    assert (held.layers, held.left, held.parameters, held.of) == (14, 0, linear, before)
    assert held.bytes_before - held.bytes_after == linear - 4 * rows
    kept = {name: w.dtype for name, w in loaded.model.named_parameters() if "proj" not in name}
    assert set(kept.values()) == {torch.bfloat16} and any("lm_head" in name for name in kept)


@pytest.mark.usefixtures("fp8_units")
def test_hidden_states_are_those_of_the_model_in_fp8(family: Family) -> None:
    rows = [one.ids for one in random_passes(8) if len(one.ids) > 1]
    engine = Engine(load(family("llama"), "fp8"), workers=1)
    found = dict(pair for index, vectors in pooled_vectors(engine, rows, [False] * len(rows), pooling="mean")
                 for pair in zip(index, vectors, strict=True))  # fmt: skip
    assert engine.model.fp8 is not None and len(found) == len(rows)


@pytest.mark.usefixtures("fp8_units")
@pytest.mark.parametrize("name", ["gemma2", "qwen3", "phi", "opt", "gpt-neox", "bloom"])
def test_families(family: Family, name: str) -> None:
    engine = Engine(load(family(name), "fp8"), workers=1, budget=200)
    forward_path = engine.model.forward_path
    assert all(np.isfinite(nll).all() for nll in run(engine, random_passes(10)))
    assert engine.model.fp8 is not None and engine.model.forward_path == forward_path


@pytest.mark.usefixtures("fp8_units")
@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_a_model_whose_layers_are_of_its_own_kind_is_refused(family: Family, name: str) -> None:
    engine = Engine(load(family(name), "fp8"), workers=1)
    with pytest.raises(ModelError, match="no linear layer in its blocks that fp8 can hold"):
        run(engine, random_passes(5))


@pytest.mark.usefixtures("fp8_units")
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_planned_memory_is_that_of_the_model_but_for_scales_and_norms(family: Family, name: str) -> None:
    loaded = load(family(name), "fp8")
    shape = model_shape(loaded.source)
    run(Engine(loaded, workers=1), random_passes(4))
    norms = sum(w.numel() for w in loaded.model.parameters() if w.ndim == 1)
    own = sum(w.numel() * w.element_size() for w in loaded.model.parameters())
    assert own == shape.memory("fp8") + norms
    assert shape.memory("bf16") == 2 * shape.parameters > shape.memory("fp8")


def test_its_answers_are_not_met_by_those_of_another_dtype() -> None:
    names = {answers_name("model", dtype, 1) for dtype in ("fp8", "bf16", "fp16", "fp32")}
    assert len(names) == 4 and sum(name.startswith("fp8-") for name in names) == 1


@pytest.mark.usefixtures("fp8_units")
def test_the_run_record_has_it(family: Family) -> None:
    engine = Engine(load(family("llama"), "fp8"), workers=1)
    assert "in float8_e4m3fn" in engine_sentence(engine) and "fp8" not in engine_record(engine)
    run(engine, random_passes(6))
    record = engine_record(engine)
    assert record["dtype"] == "float8_e4m3fn" and record["fp8"]["layers"] == 14
    assert set(record["fp8"]["error_against_bf16"]) >= {"passes", "mean", "largest", "rank_correlation"}
    json.dumps(record, allow_nan=False)


def test_routers_and_sides_that_the_units_do_not_take_stay() -> None:
    block = torch.nn.ModuleDict({"gate": torch.nn.Linear(32, 64), "gate_proj": torch.nn.Linear(32, 64)})
    block["odd"] = torch.nn.Linear(32, 40)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block]), "lm_head": torch.nn.Linear(32, 64)})
    assert [name for _, name, linear in linear_layers(model) if fp8.fits(name, linear)] == ["gate_proj"]


def test_a_sample_is_spread_over_what_is_read_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [
        make_pass([7], 0) if i % 2 else make_pass(list(range(10)), 4) for i in range(40)
    ]  # every other one scores nothing
    batches = [type("B", (), {"index": tuple(range(i, i + 10))})() for i in range(0, 40, 10)]
    monkeypatch.setattr(fp8_error, "SAMPLE", 5)
    assert [id(one) for one in fp8_error.sampled(passes, batches)] == [id(passes[i]) for i in (0, 10, 20, 28, 38)]
    monkeypatch.setattr(fp8_error, "SAMPLE_TOKENS", 25)
    assert len(fp8_error.sampled(passes, batches)) == 2
    monkeypatch.setattr(fp8_error, "SAMPLE_TOKENS", 5)
    assert len(fp8_error.sampled(passes, batches)) == 1
    assert fp8_error.sampled(passes[1:2], batches[:0]) == []
