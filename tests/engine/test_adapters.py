"""LoRA adapters as models: merged as PEFT does, with a fingerprint of both."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from tests.small_model import make_model
from tithe.engine import model_source as sources
from tithe.engine.loading import load_model
from tithe.engine.model_source import find_model, fingerprint, load_tokenizer
from tithe.errors import MissingExtraError, ModelError
from tithe.records import Pass

PASSES = [Pass(np.arange(5, 25, dtype=np.int32), 8), Pass(np.arange(40, 45, dtype=np.int32), 1)]


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory):
    """Make an adapter of all linear layers with random matrices, so that it changes much."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "lora"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        both = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, weight in both.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, std=0.3)
    both.save_pretrained(str(folder))
    return folder


def changed(adapter, folder, **values):
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_likelihoods_are_those_of_the_model_merged_by_hand(adapter, model_dir):
    """Compute W + (alpha / r) B A for every matrix, written into the base model's weights."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    parts = load_file(adapter / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    weights, changed_ones = dict(model.named_parameters()), 0
    with torch.no_grad():
        for name, a in parts.items():
            if name.endswith("lora_A.weight"):
                b = parts[name.replace("lora_A", "lora_B")]
                target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                weights[target] += 8 / 4 * b @ a
                changed_ones += 1
        expected = []
        for one in PASSES:
            logits = model(torch.tensor(one.ids[None].astype(np.int64))).logits[0].log_softmax(-1)
            expected.append([-logits[i - 1, one.ids[i]].item() for i in range(one.start, len(one.ids))])
    assert changed_ones == 2 * 7
    loaded = load_model(find_model(str(adapter)), device="cpu", dtype="fp32")
    plain = load_model(find_model(str(model_dir)), device="cpu", dtype="fp32")
    for got, base, wanted in zip(loaded.nll(PASSES), plain.nll(PASSES), expected, strict=True):
        assert got == pytest.approx(wanted, abs=2e-4)
        assert np.abs(got - base).max() > 0.1


def test_the_fingerprint_is_of_both(adapter, model_dir, tmp_path):
    own, base = fingerprint(find_model(str(adapter))), fingerprint(find_model(str(model_dir)))
    moved = changed(adapter, tmp_path / "moved", base_model_name_or_path=str(model_dir / "." / ""))
    assert fingerprint(find_model(str(moved))) == own != base
    assert fingerprint(find_model(str(changed(adapter, tmp_path / "scaled", lora_alpha=9)))) != own
    other = make_model(tmp_path / "other", seed=3)
    assert fingerprint(find_model(str(changed(adapter, tmp_path / "a", base_model_name_or_path=str(other))))) != own


def test_config_and_tokenizer_are_the_bases(adapter, model_dir):
    source = find_model(str(adapter))
    assert source.config["vocab_size"] and source.folder == model_dir.resolve() and source.adapter == adapter.resolve()
    assert len(load_tokenizer(source)) == len(load_tokenizer(find_model(str(model_dir))))


def test_a_relative_base_is_looked_for_beside_the_adapter(adapter, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "base")
    got = find_model(str(changed(adapter, tmp_path / "lora", base_model_name_or_path="../base")))
    assert got.folder == (tmp_path / "base").resolve()


def test_a_bundled_base_is_found_by_its_name(adapter, tmp_path):
    source = find_model(str(changed(adapter, tmp_path / "a", base_model_name_or_path="pocket")))
    assert source.config["hidden_size"] == 256
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_model(source, device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": "/nowhere/at/all"}, "the base model `/nowhere/at/all` of the adapter"),
        ({"base_model_name_or_path": None}, "does not say which model it belongs to"),
        ({"peft_type": "PROMPT_TUNING"}, "is of type PROMPT_TUNING"),
    ],
)
def test_what_cannot_be_gets_one_sentence(adapter, tmp_path, values, message):
    with pytest.raises(ModelError) as caught:
        find_model(str(changed(adapter, tmp_path / "a", **values)))
    assert message in str(caught.value) and caught.value.hint


def test_an_adapter_of_an_adapter_is_refused(adapter, tmp_path):
    with pytest.raises(ModelError, match="which is an adapter itself"):
        find_model(str(changed(adapter, tmp_path / "a", base_model_name_or_path=str(adapter))))


def test_pickled_or_missing_weights_are_refused(adapter, tmp_path):
    folder = changed(adapter, tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no `adapter_model.safetensors`") as caught:
        find_model(str(folder))
    assert "pickled" in str(caught.value.hint)
    assert find_model(str(folder), weights=False).adapter == folder.resolve()


def test_an_adapter_that_lacks_a_part_is_refused(adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = changed(adapter, tmp_path / "a")
    parts = load_file(folder / "adapter_model.safetensors")
    parts.pop(sorted(parts)[0])
    save_file(parts, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_model(find_model(str(folder)), device="cpu", dtype="fp32")


def test_a_broken_config_is_named(adapter, tmp_path):
    folder = changed(adapter, tmp_path / "a")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read `adapter_config.json`"):
        find_model(str(folder))


def test_a_missing_package_is_named(adapter, monkeypatch):
    real = sources.find_spec
    monkeypatch.setattr(sources, "find_spec", lambda name, *a: None if name == "peft" else real(name, *a))
    with pytest.raises(MissingExtraError, match="needs the package `peft`"):
        find_model(str(adapter))


LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": False}
KINDS = {
    "embedding, tied": {"target_modules": ["q_proj", "embed_tokens"]},
    "head, tied": {"target_modules": ["q_proj", "lm_head"]},
    "both, tied": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, kept tied": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embedding saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7, 9, 40]},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "DoRA of the embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 32},
    },
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_peft_beside_the_base_model(model_dir, tmp_path, kind):
    """Whatever an adapter changes, the merged model gives what PEFT gives without merging."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base():
        return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        trained = get_peft_model(base(), LoraConfig(**LORA, **KINDS[kind]))
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn_like(weight), alpha=0.1)
        trained.save_pretrained(str(tmp_path / "lora"))
        both = PeftModel.from_pretrained(base(), str(tmp_path / "lora")).eval()
    expected = []
    with torch.no_grad():
        for one in PASSES:
            logits = both(torch.tensor(one.ids[None].astype(np.int64))).logits[0].log_softmax(-1)
            expected.append([-logits[i - 1, one.ids[i]].item() for i in range(one.start, len(one.ids))])
    loaded = load_model(find_model(str(tmp_path / "lora")), device="cpu", dtype="fp32")
    plain = load_model(find_model(str(model_dir)), device="cpu", dtype="fp32")
    for got, bare, wanted in zip(loaded.nll(PASSES), plain.nll(PASSES), expected, strict=True):
        assert got == pytest.approx(wanted, abs=2e-4)
        assert np.abs(got - bare).max() > 1e-3


@pytest.mark.parametrize("name", ["model.layers.7.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "score"])
def test_a_tensor_of_an_adapter_that_has_no_place_is_named(model_dir, tmp_path, name):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        get_peft_model(model, LoraConfig(**LORA, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "lora"))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    more = {f"base_model.model.{name}.lora_A.weight": torch.ones(4, 32)}
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 of its tensors have no place there, e.g. `.*{name}"):
        load_model(find_model(str(tmp_path / "lora")), device="cpu", dtype="fp32")
