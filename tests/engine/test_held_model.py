"""A model in memory scores as the same model from its folder, and is given back as it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.engine.model_source import IN_MEMORY, lent_model
from tithe.errors import ModelError, SettingsError, TitheError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", records(12))


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def state(model: Any) -> list[Any]:
    """Return all that a user may notice of a model."""
    facts: list[Any] = [dict(vars(model.config))]
    for name, part in model.named_modules():
        attributes = {key: id(value) for key, value in vars(part).items() if not isinstance(value, bool)}
        hooks = [len(value) for key, value in vars(part).items() if key.endswith("_hooks")]
        facts.append((name, type(part), part.training, attributes, hooks))
    facts += [(name, id(one), one.requires_grad, one.device, one.dtype) for name, one in model.named_parameters()]
    facts += [(name, id(one)) for name, one in model.named_buffers()]
    return facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_the_folder_bit_for_bit(data: Path, model_dir: Path, dtype: torch.dtype) -> None:
    model, tokenizer = loaded(model_dir, dtype)
    ours = tithe.score(data, model=model, tokenizer=tokenizer, scorer="ifd,perplexity")
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    theirs = tithe.score(data, model=model_dir, dtype=name, scorer="ifd,perplexity")
    assert ours.table.equals(theirs.table) and ours.table["ifd"].null_count == 0
    assert ours.record["model"]["in_memory"] is True and ours.record["model"]["dtype"] == name
    assert "folder" not in ours.record["model"] and not IN_MEMORY


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(data: Path, model_dir: Path, training: bool) -> None:
    model, tokenizer = loaded(model_dir)
    model.train(training)
    model.model.layers[0].eval()
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)
    weights, before = {name: one.clone() for name, one in model.state_dict().items()}, state(model)
    special = tokenizer.padding_side
    tithe.select(data, model=model, tokenizer=tokenizer, scorer="ifd", keep=2)
    assert state(model) == before and tokenizer.padding_side == special
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    loss = model(torch.arange(5)[None], labels=torch.arange(5)[None]).loss
    loss.backward()  # no inference tensor was left in it


def test_it_is_given_back_after_a_failure(data: Path, model_dir: Path) -> None:
    model, tokenizer = loaded(model_dir)
    before = state(model.train())
    with pytest.raises(ZeroDivisionError), lent_model(model, tokenizer) as name:
        IN_MEMORY[name].held.ready()  # type: ignore[union-attr]
        assert not model.training
        raise ZeroDivisionError
    assert state(model) == before and not IN_MEMORY


def test_answers_are_reused_only_for_the_same_weights(data: Path, model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(model_dir)
    first = tithe.score(data, model=model, tokenizer=tokenizer, run_dir=tmp_path / "run")
    again = tithe.score(data, model=model, tokenizer=tokenizer, run_dir=tmp_path / "run")
    assert first.record["work"]["passes_computed"] == again.record["work"]["passes_reused"] == 24
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    changed = tithe.score(data, model=model, tokenizer=tokenizer, run_dir=tmp_path / "run")
    assert changed.record["work"]["passes_reused"] == 0
    assert changed.record["model"]["fingerprint"] != first.record["model"]["fingerprint"]


def test_adapters_of_peft_are_read_in_place(data: Path, model_dir: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = loaded(model_dir)
    plain = tithe.score(data, model=model, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT calls a deprecated transformers API
        config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
        wrapped = peft.get_peft_model(model, config)
    adapted = tithe.score(data, model=wrapped, tokenizer=tokenizer)
    with wrapped.disable_adapter():
        off = tithe.score(data, model=wrapped, tokenizer=tokenizer)
    assert not adapted.table["ifd"].equals(plain.table["ifd"])
    assert off.table["ifd"].to_pylist() == pytest.approx(plain.table["ifd"].to_pylist(), rel=1e-6)
    prints = {one.record["model"]["fingerprint"] for one in (plain, adapted, off)}
    assert len(prints) == 3
    merged = wrapped.merge_and_unload()
    exact = tithe.score(data, model=merged, tokenizer=tokenizer).table["ifd"].to_pylist()
    assert adapted.table["ifd"].to_pylist() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"tokenizer": None}, SettingsError, "needs its tokenizer"),
        ({"tokenizer": 5}, SettingsError, "`tokenizer` cannot be a int"),
        ({"device": "cpu,cpu"}, SettingsError, "is read in this process and where it is"),
        ({"dtype": "bf16"}, SettingsError, "is read as it is, in fp32, not in bf16"),
        ({"warmup": True}, SettingsError, "`warmup` trains a model from its files"),
        ({"model": 5}, ModelError, "`model` cannot be a int"),
        ({"model": "pocket"}, SettingsError, "`tokenizer` is read only beside a model in memory"),
        ({"model": torch.nn.Linear(2, 2)}, ModelError, "`model` cannot be a Linear"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_in_place(
    data: Path, model_dir: Path, given: dict[str, Any], error: type[TitheError], words: str
) -> None:
    model, tokenizer = loaded(model_dir)
    with pytest.raises(error) as caught:
        tithe.score(data, **{"model": model, "tokenizer": tokenizer, **given})
    assert words in str(caught.value)


def test_a_model_on_no_device_and_one_in_half_of_nothing(data: Path, model_dir: Path) -> None:
    model, tokenizer = loaded(model_dir)
    with pytest.raises(ModelError, match=r"cannot be read in torch\.float64"):
        tithe.score(data, model=model.to(torch.float64), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="not in memory but offloaded"):
        tithe.score(data, model=model.to("meta"), tokenizer=tokenizer)


def test_a_plan_and_its_time_of_a_model_in_memory(data: Path, model_dir: Path) -> None:
    model, tokenizer = loaded(model_dir)
    planned = tithe.plan(data, model=model, tokenizer=tokenizer)
    assert planned.seconds is not None and planned.seconds > 0
    assert planned.record["time"]["dtype"] == "float32"
