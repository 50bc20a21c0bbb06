"""Models that cannot be read give one sentence and a hint, never a library's traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.models import CONFIGS, GROUPED, load, make_pass, save
from tithe.engine import loading
from tithe.engine.devices import choose_device, choose_dtype
from tithe.engine.generate import generation_config
from tithe.engine.loading import rotary_limit
from tithe.engine.measure.shape import model_shape
from tithe.engine.model_files import reading_folder
from tithe.engine.model_source import (
    BUNDLED,
    context_window,
    demand_known_ids,
    embedded_ids,
    find_model,
    fingerprint,
    load_tokenizer,
    suggestion,
)
from tithe.errors import ModelError, SettingsError, TitheError

Family = Callable[[str], Path]


@pytest.fixture
def folder(family: Family, tmp_path: Path) -> Path:
    """Return a copy to break."""
    return Path(shutil.copytree(family("llama"), tmp_path / "tiny-llama"))


def refused(action: Callable[[], Any], kind: type[TitheError] = ModelError) -> tuple[str, str]:
    """Return message and hint; the message must be one sentence on one line."""
    with pytest.raises(kind) as caught:
        action()
    text, hint = str(caught.value), caught.value.hint
    assert "\n" not in text and not text.endswith(".") and len(text) < 500
    assert hint
    return text, hint


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_missing_folder_with_a_near_name(folder: Path) -> None:
    text, hint = refused(lambda: find_model(str(folder.parent / "tiny-lama")))
    assert text == f"no model folder `{folder.parent / 'tiny-lama'}`"
    assert hint == f"did you mean `{folder}`?"


def test_a_missing_folder_with_no_near_name(tmp_path: Path) -> None:
    _, hint = refused(lambda: find_model(str(tmp_path / "no" / "such" / "place")))
    assert hint == f"`{tmp_path}` has no `no`; bundled: pocket"


@pytest.mark.parametrize("name", ["", "a" * 5000, "/" + "a" * 5000, "a\0b", "~nobody-of-that-name/x", "two words"])
def test_names_that_cannot_be(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: find_model(name))


def test_a_bundled_model_is_never_another_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the bundled folder is missing, the hub is not asked for a model of that name."""
    monkeypatch.setitem(BUNDLED, "pocket", tmp_path / "model")
    text, hint = refused(lambda: find_model("pocket"))
    assert text == f"the bundled model `pocket` is not in `{tmp_path}`" and hint == "install tithe again"


def test_a_hub_id_when_the_hub_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    text, hint = refused(lambda: find_model("tiny-lama"))
    assert text.startswith("no folder `tiny-lama`, and the hub could not be asked for a model of that name: ")
    assert hint == "did you mean `tiny-llama`?"


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    text, hint = refused(lambda: find_model(str(folder / "model.safetensors")))
    assert text.endswith("is a file") and hint == "give the folder that holds `config.json`, or a GGUF file"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    text, hint = refused(lambda: find_model(str(folder)))
    assert text.endswith("has no `config.json`") and "model.safetensors" in hint


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\xfe{", b"null"])
def test_a_broken_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    text, _ = refused(lambda: find_model(str(folder)))
    assert "config.json" in text


def test_pickled_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text, hint = refused(lambda: find_model(str(folder)))
    assert text.endswith("has no `.safetensors` file") and hint == "convert the pickled weights to safetensors first"


def test_no_weights_are_needed_for_a_plan(folder: Path) -> None:
    exact = model_shape(find_model(str(folder)))
    (folder / "model.safetensors").unlink()
    _, hint = refused(lambda: find_model(str(folder)))
    assert hint == "the folder has no weights"
    guess = model_shape(find_model(str(folder), weights=False))
    assert exact.exact and not guess.exact
    assert guess.parameters == pytest.approx(exact.parameters, rel=0.05)


def test_a_recurrent_model_is_estimated_too(family: Family, tmp_path: Path) -> None:
    shutil.copy(family("mamba") / "config.json", tmp_path)
    assert model_shape(find_model(str(tmp_path), weights=False)).parameters > 0


def test_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    text, hint = refused(lambda: find_model(str(folder)))
    assert text.endswith("is of type None") and hint == "only LoRA adapters can be merged"


SMALL = {"vocab_size": 199, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("cls", [transformers.BertModel, transformers.BertForMaskedLM, transformers.LlamaModel])
def test_models_without_a_language_head(cls: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**GROUPED) if cls is transformers.LlamaModel else transformers.BertConfig(**SMALL)
    save(tmp_path, config, model=cls)
    text, hint = refused(lambda: find_model(str(tmp_path)))
    assert text.endswith(f"is not a causal language model but {cls.__name__}")
    assert hint == "its architecture must end in CausalLM"


def test_an_encoder_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=199, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    save(tmp_path, config, model=transformers.T5ForConditionalGeneration)
    text, hint = refused(lambda: find_model(str(tmp_path)))
    assert "is an encoder-decoder model (T5ForConditionalGeneration)" in text and hint == "give a causal language model"


def test_a_backbone_that_calls_itself_a_language_model(tmp_path: Path) -> None:
    save(tmp_path, transformers.LlamaConfig(**GROUPED), model=transformers.LlamaModel)
    change_config(tmp_path, architectures=["LlamaForCausalLM"])
    text, hint = refused(lambda: load(tmp_path))
    assert "lack 1 of the model's tensors, e.g. `lm_head.weight`" in text and "language-model head" in hint


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    text, _ = refused(lambda: load(folder))
    assert text.startswith(f"cannot load model `{folder}`: ")
    weights.write_bytes(b"\x00\x01")
    refused(lambda: load(folder))
    refused(lambda: model_shape(find_model(str(folder))))


def test_weights_of_another_shape(folder: Path) -> None:
    change_config(folder, hidden_size=64)
    refused(lambda: load(folder))


def test_an_unknown_architecture_and_remote_code(folder: Path) -> None:
    change_config(folder, model_type="nobody-knows", architectures=["NobodyForCausalLM"])
    refused(lambda: load(folder))
    change_config(folder, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    marker = folder.parent / "ran"
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w')")
    refused(lambda: load(folder))
    assert not marker.exists()


def sharded(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    assert len(find_model(str(folder)).weights) > 2
    return folder


def test_weights_in_several_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path, CONFIGS["llama"]())
    assert load(folder).forward_path == "packed"
    find_model(str(folder)).weights[1].unlink()
    assert "and there is no such file" in refused(lambda: find_model(str(folder)))[0]


def test_a_model_too_large_for_the_memory(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(loading, "choose_forward_path", full)
    text, hint = refused(lambda: load(family("llama")))
    assert text.endswith("in fp32 does not fit into the memory of `cpu`") and "smaller dtype" in hint


def test_no_tokenizer(folder: Path) -> None:
    text, hint = refused(lambda: load_tokenizer(find_model(str(folder))))
    assert "tokenizer" in text and str(folder) in hint


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    refused(lambda: load_tokenizer(find_model(str(folder))))


def test_the_context_window_is_the_smaller_of_both_files(model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "m"))
    source = find_model(str(folder))
    tokenizer = load_tokenizer(source)
    assert context_window(source, tokenizer) == 512
    change_config(folder, max_position_embeddings=2048)
    assert context_window(source, tokenizer) == 512
    tokenizer.model_max_length = int(1e30)
    assert context_window(source, tokenizer) == 2048
    change_config(folder, max_position_embeddings=None)
    assert context_window(source, tokenizer) is None


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "meta", "", "mps:7"])
def test_devices_that_are_not_there(device: str) -> None:
    refused(lambda: choose_device(device), SettingsError)


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("fp32", cpu) is torch.float32
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    text, hint = refused(lambda: choose_dtype("float16", cpu), SettingsError)
    assert text == "no dtype `float16`" and hint == "auto, fp32, bf16, fp16, fp8"


def test_a_torch_that_does_not_say_what_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32


def test_the_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(find_model(str(folder)))
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    change_config(other, _name_or_path="somewhere", transformers_version="0")
    assert fingerprint(find_model(str(other))) == before
    change_config(other, rms_norm_eps=1e-3)
    assert fingerprint(find_model(str(other))) != before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(find_model(str(folder))) != before


def test_a_name_in_the_hubs_cache_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """A download repaired in place keeps its name while its bytes change."""
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    blob = tmp_path / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    before, stat = fingerprint(find_model(str(folder))), blob.stat()
    blob.write_bytes(data[:-4] + b"\0\0\0\0")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(find_model(str(folder))) != before
    blob.write_bytes(data)
    assert fingerprint(find_model(str(folder))) == before


def test_the_fingerprint_is_of_the_code_too(folder: Path) -> None:
    before = fingerprint(find_model(str(folder)))
    (folder / "modeling_mine.py").write_text("SCALE = 1")
    assert fingerprint(find_model(str(folder))) != before


def test_where_rotary_scalings_switch() -> None:
    found = {name: rotary_limit(make()) for name, make in CONFIGS.items()}
    assert {name for name, limit in found.items() if limit} == {"llama-dynamic", "llama-longrope", "phi3-longrope"}
    assert set(found.values()) == {None, 32}


def test_a_mistyped_bundled_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert suggestion(Path("pokcet")) == "did you mean `pocket`, the bundled model?"
    assert "pocket" in suggestion(Path("something-else"))


def put(folder: Path, tensors: dict[str, Any], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def tensors_in(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_config_of_fewer_layers_than_the_weights_have(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    text, hint = refused(lambda: load(folder))
    assert "tensors that the model has not, e.g. `model.layers.1." in text and "fewer layers?" in hint


def test_a_tensor_that_no_model_has_is_named(folder: Path) -> None:
    put(folder, tensors_in(folder) | {"v_head.weight": torch.ones(3)})
    text, _ = refused(lambda: load(folder))
    assert "have 1 tensors that the model has not, e.g. `v_head.weight`" in text


def test_buffers_of_earlier_versions_do_no_harm(folder: Path) -> None:
    """Rotary tables, which transformers itself ignores, and causal masks."""
    before = load(folder).nll([make_pass(range(9), 2)])[0]
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attn.bias": torch.ones(1, 1, 8, 8).tril(),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
    }
    put(folder, tensors_in(folder) | more)
    assert (load(folder).nll([make_pass(range(9), 2)])[0] == before).all()


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    tensors = tensors_in(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    put(folder, tensors | {name: (tensors[name] * 100).to(torch.int8)})
    text, _ = refused(lambda: load(folder))
    assert f"quantised (`{name}` is I8)" in text


def test_weights_that_are_no_numbers(folder: Path) -> None:
    tensors = tensors_in(folder)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    put(folder, tensors)
    text, _ = refused(lambda: load(folder))
    assert "no finite likelihood" in text


def two_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Write the weights in two halves, with an index."""
    tensors = tensors_in(folder)
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    halves = [{name: tensors[name].clone() for name in part} for part in (names[::2], names[1::2])]
    return halves[0], halves[1], {name: SHARDS[i] for i in range(2) for name in halves[i]}


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def write_index(folder: Path, places: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("fault", ["lacks a file", "twice", "not named", "lost", "a third", "a whole one", "no map"])
def test_index_and_files_have_to_agree(folder: Path, fault: str) -> None:
    whole = tensors_in(folder)
    first, second, places = two_files(folder)
    one = next(iter(second))
    put(folder, first, SHARDS[0])
    put(folder, second, SHARDS[1])
    write_index(folder, places)
    assert load(folder).forward_path == "packed"
    if fault == "lacks a file":
        (folder / SHARDS[1]).unlink()
        wanted = f"`{INDEX}` of `{folder}` names `{SHARDS[1]}`, and there is no such file"
    elif fault == "twice":
        put(folder, first | {one: second[one] * 2}, SHARDS[0])
        wanted = f"`{SHARDS[0]}` of `{folder}` holds the tensor `{one}`, and `{INDEX}` says it is in `{SHARDS[1]}`"
    elif fault == "not named":
        put(folder, first | {"foo": torch.ones(2)}, SHARDS[0])
        wanted = f"holds the tensor `foo`, and `{INDEX}` does not name it"
    elif fault == "lost":
        write_index(folder, places | {"foo": SHARDS[0]})
        wanted = f"says that the tensor `foo` is in `{SHARDS[0]}`, but it is not"
    elif fault == "a third":
        put(folder, {"foo": torch.ones(2)}, "model-00003-of-00003.safetensors")
        wanted = f"holds `model-00003-of-00003.safetensors`, and `{INDEX}` does not name it"
    elif fault == "a whole one":
        put(folder, whole)
        wanted = f"holds `{SHARDS[0]}`, and `model.safetensors` is there as well"
    else:
        write_index(folder, [1])
        wanted = "has no map of tensors to files"
    assert wanted in refused(lambda: find_model(str(folder)))[0]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"architectures": [1, 2]}, "`architectures` in `config.json` of model"),
        ({"text_config": [1]}, "must be an object"),
        ({"num_hidden_layers": 100_000_000}, "is 100,000,000: no model has so many"),
        ({"text_config": {"num_experts": 10**9}}, "is 1,000,000,000: no model has so many"),
        ({"hidden_size": "x"}, "Validation error for field 'hidden_size': TypeError"),
        ({"num_attention_heads": 0}, "cannot load"),
        ({"vocab_size": 10**12}, "its tensors have other shapes than `config.json` says"),
    ],
)
def test_a_config_of_odd_values(folder: Path, values: dict[str, Any], wanted: str) -> None:
    change_config(folder, **values)
    assert wanted in refused(lambda: load(folder))[0]


def odd_entry(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "itself": path, "nowhere": path.with_name("none")}[kind])


@pytest.mark.parametrize("name", ["x.safetensors", "x.py", "config.json", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "itself", "nowhere"])
def test_what_is_no_file_is_not_opened(folder: Path, name: str, kind: str) -> None:
    odd_entry(folder / name, kind)
    text, hint = refused(lambda: find_model(str(folder)))
    assert text.startswith(f"`{name}` of `{folder}`") and str(folder) in hint


def test_a_model_folder_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(lambda: find_model(str(tmp_path / "loop")))


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '{"eos_token_id": 1'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_torn_deep_or_of_another_kind(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    found = refused(lambda: generation_config(find_model(str(folder))))[0]
    assert f"`{name}` of model `{folder}`" in found


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{"])
def test_a_file_of_a_tokenizer_that_is_no_json_is_named(model_dir: Path, tmp_path: Path, name: str, text: str) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "m"))
    (folder / name).write_text(text)
    assert f"`{name}` holds no JSON object" in refused(lambda: load_tokenizer(find_model(str(folder))))[0]


def twice(text: str, key: str, value: Any) -> str:
    """Return a JSON object's text with one more field at its end."""
    return f"{text.rstrip()[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "vocab_size", 5),
        ("generation_config.json", "eos_token_id", 5),
        ("tokenizer_config.json", "eos_token", "x"),
    ],
)
def test_a_field_that_stands_twice_is_not_the_last_of_both(
    folder: Path, model_dir: Path, name: str, key: str, value: Any
) -> None:
    for file in model_dir.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    (folder / name).write_text(twice(json.dumps({key: None} | json.loads((folder / name).read_text())), key, value))

    def read() -> None:
        source = find_model(str(folder))
        generation_config(source)
        load_tokenizer(source)

    assert f"`{name}` of model `{folder}`: the field `{key}` stands twice" in refused(read)[0]


def test_a_tensor_that_stands_twice_is_refused(folder: Path) -> None:
    """Transformers would read the last one: other scores, and no warning."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    text = twice(json.dumps(header), name, header[name]).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    assert f"the field `{name[:40]}` stands twice" in refused(lambda: load(folder))[0]


def test_a_panic_of_a_library_is_one_sentence(tmp_path: Path) -> None:
    """A Rust panic is no `Exception`; Ctrl-C is none either, and must pass through."""
    panic = type("PanicException", (BaseException,), {})
    for error in (panic("index out of bounds\nsecond line"), RuntimeError("index out of bounds")):
        with (
            pytest.raises(ModelError, match=r"^cannot load `x`: index out of bounds$"),
            reading_folder("cannot load `x`", tmp_path),
        ):
            raise error
    with pytest.raises(KeyboardInterrupt), reading_folder("cannot load `x`", tmp_path):
        raise KeyboardInterrupt


def test_ids_that_the_model_does_not_embed(folder: Path) -> None:
    """Found in the config, before weights are read or a folder is created."""
    source = find_model(str(folder))
    rows = embedded_ids(source)
    assert rows == load(folder).vocabulary
    demand_known_ids("m", rows - 1, rows)
    demand_known_ids("m", 10**9, None)
    text, _ = refused(lambda: demand_known_ids("m", rows, rows))
    assert text == f"the tokenizer gives id {rows}, but `m` embeds {rows} ids"
