"""GGUF files: the weights are transformers' own, and whatever is damaged is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_gguf import write_gguf
from tests.small_model import make_model
from tithe.engine import gguf_file, model_source
from tithe.engine.gguf_file import read_header
from tithe.engine.gguf_model import known_architectures, note_on
from tithe.engine.loading import read_weights
from tithe.engine.measure.shape import model_shape
from tithe.engine.model_source import context_window, find_model, fingerprint, load_tokenizer
from tithe.errors import MissingExtraError, ModelError, TitheError

TEXT = "Name three colours, don't they?\n\n  Red 123 <|end|> über 😀"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model as safetensors."""
    return make_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def small(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GGUF file of that model, in 8 bits."""
    return write_gguf(plain, tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def file(small: Path, tmp_path: Path) -> Path:
    """Return a copy to break."""
    return Path(shutil.copy(small, tmp_path / "model.gguf"))


def refused(action: Callable[[], Any], kind: type[TitheError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and not text.endswith(".") and len(text) < 500
    return text


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_are_those_of_transformers_own_loading(
    plain: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM

    file = write_gguf(plain, tmp_path / "model.gguf", quantised=kind)
    ours = read_weights(find_model(str(file)), dtype, False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=dtype).eval()
    assert ours.dtype == dtype
    assert torch.equal(logits(ours), logits(theirs))
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_file_that_was_not_quantised_is_the_model_that_it_was_made_of(plain: Path, tmp_path: Path) -> None:
    source = find_model(str(write_gguf(plain, tmp_path / "model.gguf", quantised="F32")))
    whole = find_model(str(plain))
    ours, folder = (read_weights(one, torch.float32, False) for one in (source, whole))
    assert torch.equal(logits(ours), logits(folder))
    assert model_shape(source) == model_shape(whole)
    one, other = load_tokenizer(source), load_tokenizer(whole)
    assert one(TEXT).input_ids == other(TEXT).input_ids
    assert one.chat_template == other.chat_template
    assert (one.bos_token, one.eos_token) == (other.bos_token, other.eos_token)
    assert context_window(source, one) == 512


def test_nothing_beside_the_file_is_read(small: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(small, tmp_path / "model.gguf"))
    alone = load_tokenizer(find_model(str(file)))
    for name in ("tokenizer_config.json", "tokenizer.json", "generation_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text('{"bos_token": "<other>", "chat_template": "other"}')
    (tmp_path / "config.txt").mkdir()
    source = find_model(str(file))
    beside = load_tokenizer(source)
    assert (beside.chat_template, beside.bos_token) == (alone.chat_template, "<|begin|>")
    assert read_weights(source, torch.float32, False).generation_config.eos_token_id == 1


def test_a_dequantised_model_can_be_saved_and_trained(small: Path, tmp_path: Path) -> None:
    model = read_weights(find_model(str(small)), torch.float32, False)
    assert not model.is_quantized and "quantization_config" not in model.config.to_dict()
    model.save_pretrained(tmp_path / "saved")
    again = read_weights(find_model(str(tmp_path / "saved")), torch.float32, False)
    assert torch.equal(logits(again), logits(model))


def test_the_fingerprint_is_of_the_files_bytes(small: Path, file: Path) -> None:
    first, copy = find_model(str(small)), find_model(str(file))
    assert fingerprint(first) == fingerprint(copy)  # wherever it is, and whatever its name
    raw = bytearray(file.read_bytes())
    raw[-40] ^= 1  # a weight
    file.write_bytes(raw)
    assert fingerprint(find_model(str(file))) != fingerprint(first)


def test_a_folder_with_one_file_is_that_file(file: Path) -> None:
    (file.parent / "README.md").write_text("model card")
    source = find_model(str(file.parent))
    assert source.gguf == file and fingerprint(source) == fingerprint(find_model(str(file)))


def test_a_folder_with_several_files(file: Path) -> None:
    shutil.copy(file, file.parent / "other.gguf")
    with pytest.raises(ModelError) as caught:
        find_model(str(file.parent))
    assert str(caught.value) == f"`{file.parent}` holds 2 GGUF files: `model.gguf`, `other.gguf`"
    assert caught.value.hint == f"name one of them: `{file.parent}/model.gguf`"


def test_safetensors_win_over_a_gguf_file_beside_them(plain: Path, small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "both"))
    shutil.copy(small, folder / "model.gguf")
    assert find_model(str(folder)).gguf is None
    assert find_model(str(folder / "model.gguf")).gguf == folder / "model.gguf"


def test_the_note_says_types_and_dtype(plain: Path, small: Path, tmp_path: Path) -> None:
    assert note_on(small, "m", "bf16") == "note: `small.gguf` holds weights in Q8_0; they are dequantised to bf16"
    scaled = write_gguf(
        plain, tmp_path / "m.gguf", change=lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    )
    assert "transformers does not read `rope_freqs.weight`" in note_on(scaled, "m", "fp32")


# Files that hold no model.


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"GGML" + bytes(100), b"{}", bytes(5000), b"PK\3\4" * 99])
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert "is not a GGUF file that can be read" in refused(lambda: find_model(str(tmp_path / "x.gguf")))


def test_no_file_at_all(tmp_path: Path) -> None:
    assert refused(lambda: find_model(str(tmp_path / "x.gguf"))) == f"no GGUF file `{tmp_path / 'x.gguf'}`"
    (tmp_path / "folder.gguf").mkdir()
    refused(lambda: find_model(str(tmp_path / "folder.gguf")))


def test_a_torn_file(file: Path) -> None:
    whole = file.read_bytes()
    for share in (0.999, 0.5, 0.2, 0.01):
        file.write_bytes(whole[: int(share * len(whole))])
        assert "it was cut off" in refused(lambda: find_model(str(file)))


def test_a_file_cut_off_anywhere_in_its_header(file: Path) -> None:
    whole = file.read_bytes()
    end = read_header(file, "m").tensors[0].start
    for size in [*range(4, 400, 7), *range(400, end, 997)]:
        file.write_bytes(whole[:size])
        refused(lambda: find_model(str(file)))


def test_an_architecture_that_transformers_does_not_read(plain: Path, tmp_path: Path) -> None:
    file = write_gguf(plain, tmp_path / "m.gguf", architecture="rwkv99")
    with pytest.raises(ModelError) as caught:
        find_model(str(file))
    assert "has the architecture `rwkv99`, and transformers reads no such GGUF file" in str(caught.value)
    assert caught.value.hint is not None and "llama" in caught.value.hint and "qwen2moe" in caught.value.hint
    assert {"llama", "gemma3", "gpt-oss"} <= {*known_architectures()}


def kind_of(name: str) -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        writer.add_type(name)

    return change


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"architecture": "clip", "left_out": "token_embd"}, "is no language model: it is a `clip`"),
        ({"left_out": "token_embd"}, "without a token embedding"),
        ({"left_out": "tokenizer"}, "without a tokenizer"),
        ({"architecture": "t5"}, "is not a causal language model but a `t5`"),
        ({"change": kind_of("adapter")}, "is no language model but of the type `adapter`"),
        ({"change": kind_of("mmproj")}, "is no language model but of the type `mmproj`"),
        ({"change": lambda w: w.add_uint16("split.count", 3)}, "is one of several parts of a model"),
    ],
    ids=["vision", "no embedding", "no tokenizer", "encoder-decoder", "adapter", "projector", "part"],
)
def test_no_whole_language_model(plain: Path, tmp_path: Path, how: dict[str, Any], said: str) -> None:
    file = write_gguf(plain, tmp_path / "m.gguf", **how)
    assert said in refused(lambda: find_model(str(file)))


def test_a_model_without_one_of_its_tensors(plain: Path, tmp_path: Path) -> None:
    file = write_gguf(plain, tmp_path / "m.gguf", left_out="blk.1.ffn_up")
    text = refused(lambda: read_weights(find_model(str(file)), torch.float32, False))
    assert "lack 1 of the model's tensors, e.g. `model.layers.1.mlp.up_proj.weight`" in text


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package(small: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = gguf_file.find_spec
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingExtraError) as caught:
        find_model(str(small))
    assert str(caught.value) == f"`{small}` is a GGUF file, and reading it needs the package `{package}`"
    assert caught.value.hint is not None and "[gguf]" in caught.value.hint


# Hostile files: no number in them lets the reader loop or allocate.


def texts(*all_of_them: str) -> bytes:
    return b"".join(struct.pack("<Q", len(one)) + one.encode() for one in all_of_them)


def head(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


HUGE = 2**63 - 1
NESTED = struct.pack("<IQ", 9, 1)
HOSTILE = {
    "tensors without end": (head(tensors=HUGE), "tensors"),
    "values without end": (head(values=HUGE), "values"),
    "a text without end": (head(values=1) + struct.pack("<Q", HUGE), "bytes in one text"),
    "a list without end": (head(values=1) + texts("a") + struct.pack("<IIQ", 9, 0, HUGE), "items in one list"),
    "texts without end": (head(values=1) + texts("a") + struct.pack("<IIQ", 9, 8, 7_000_000), "cut off"),
    "a jump beyond": (head(values=1) + texts("a") + struct.pack("<IIQQ", 9, 8, 2000, HUGE), "cut off"),
    "lists in lists": (head(values=1) + texts("a") + struct.pack("<I", 9) + NESTED * 5000, "unknown type 9"),
    "an unknown type": (head(values=1) + texts("a") + struct.pack("<I", 77), "unknown type 77"),
    "a value twice": (head(values=2) + (texts("a") + struct.pack("<IB", 0, 1)) * 2, "the value `a` twice"),
    "not text": (head(values=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(9), "not UTF-8"),
    "a tensor of many axes": (head(tensors=1) + texts("t") + struct.pack("<I", 2**32 - 1), "axes"),
    "a huge tensor": (head(tensors=1) + texts("t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0), "cut off"),
    "an unknown kind": (head(tensors=1) + texts("t") + struct.pack("<IQIQ", 1, 4, 999, 0), "type 999"),
    "odd rows": (head(tensors=1) + texts("t") + struct.pack("<IQIQ", 1, 5, 2, 0), "no multiple of 32"),
    "a crooked alignment": (head(values=1) + texts("general.alignment") + struct.pack("<II", 4, 3), "power of two"),
    "version 1": (head(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    content, said = HOSTILE[name]
    (tmp_path / "x.gguf").write_bytes(content + bytes(64))
    assert said in refused(lambda: find_model(str(tmp_path / "x.gguf")))


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("embedding_length", 2**31),
        ("block_count", 2**31),
        ("block_count", 9_000),
        ("feed_forward_length", 2**31),
        ("attention.head_count", 2**31),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 3),
        ("vocab_size", 2**31),
        ("context_length", 0),
    ],
)
def test_sizes_that_are_not_those_of_the_tensors(plain: Path, file: Path, key: str, number: int) -> None:
    """transformers would build a model of that size; it must be refused before, or by the shapes of the tensors."""
    raw = file.read_bytes()
    name = texts(f"llama.{key}") + struct.pack("<I", 4)
    at = raw.index(name) + len(name)
    file.write_bytes(raw[:at] + struct.pack("<I", number) + raw[at + 4 :])
    if key == "context_length":  # says nothing
        source = find_model(str(file))
        assert context_window(source, load_tokenizer(source)) is None
        return
    refused(lambda: read_weights(find_model(str(file)), torch.float32, False))


def test_overlapping_tensors(file: Path) -> None:
    """A small file must not grow into a large model."""
    raw = bytearray(file.read_bytes())
    for tensor in read_header(file, "m").tensors:
        at = raw.index(texts(tensor.name)) + 8 + len(tensor.name)
        place = at + 4 + 8 * len(tensor.shape) + 4
        raw[place : place + 8] = struct.pack("<Q", 0)
    file.write_bytes(raw[: 3 * len(raw) // 4])
    assert "its tensors overlap" in refused(lambda: find_model(str(file)))


def test_flipped_bytes_never_hang(file: Path) -> None:
    """A damaged header is refused, or is a header still; either in no time."""
    whole, end = file.read_bytes(), read_header(file, "m").tensors[0].start
    draw = np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(whole)
        for place in draw.integers(0, end, 4):
            raw[place] = int(draw.integers(256))
        file.write_bytes(raw)
        try:
            read_header(file, "m")
        except ModelError as error:
            assert "\n" not in str(error)


def test_a_long_list_of_texts_is_stepped_over(tmp_path: Path) -> None:
    """A million texts take about half a second, and are counted but not kept."""
    body = head(values=1) + texts("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1_000_000)
    (tmp_path / "x.gguf").write_bytes(body + texts("x") * 1_000_000)
    began = time.process_time()
    header = gguf_file.cached_header(tmp_path / "x.gguf", "m", (1,))
    assert header.vocabulary == 1_000_000 and header.entries["tokenizer.ggml.tokens"].values == ()
    assert time.process_time() - began < 60


# The hub.


class Hub:
    """A stub of the hub's client: files of one repository.

    Args:
        folder: what it downloads into.
        files: of the repository.
    """

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        self.folder, self.files, self.fetched = folder / "snapshots" / "abc", files, []  # type: ignore[var-annotated]
        self.folder.mkdir(parents=True)

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        for file in self.files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                self.hf_hub_download(name, file)
        return str(self.folder)

    def hf_hub_download(self, repo: str, file: str) -> str:
        self.fetched.append(file)
        return shutil.copy(self.files[file], self.folder / file)

    def list_repo_files(self, repo: str) -> list[str]:
        return [*self.files]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Path) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path, {"a.Q8_0.gguf": small})
    monkeypatch.chdir(tmp_path)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_a_repository_with_one_file(hub: Hub, small: Path) -> None:
    source = find_model("owner/name-GGUF")
    assert hub.fetched == ["a.Q8_0.gguf"] and source.revision == "abc"
    assert fingerprint(source) == fingerprint(find_model(str(small)))


def test_a_repository_with_several_files_downloads_none(hub: Hub, small: Path) -> None:
    hub.files["b.Q4_0.gguf"] = small
    with pytest.raises(ModelError) as caught:
        find_model("owner/name-GGUF")
    assert str(caught.value) == "`owner/name-GGUF` holds 2 GGUF files: `a.Q8_0.gguf`, `b.Q4_0.gguf`"
    assert caught.value.hint == "name one of them: `owner/name-GGUF/a.Q8_0.gguf`" and hub.fetched == []
    assert find_model("owner/name-GGUF/b.Q4_0.gguf").revision == "abc"
    assert hub.fetched == ["b.Q4_0.gguf"]


def test_a_file_of_the_hub_when_it_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(lambda: find_model("owner/name/x.gguf"))
    assert text.startswith("no folder `owner/name/x.gguf`, and the hub could not be asked")


# Adapters.


def test_an_adapter_of_a_gguf_file(small: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = read_weights(find_model(str(small)), torch.float32, False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls a deprecated transformers API
        made = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    path = tmp_path / "adapter" / model_source.ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(small)}))
    source = find_model(str(tmp_path / "adapter"))
    assert source.gguf == small and source.adapter == tmp_path / "adapter"
    assert fingerprint(source) != fingerprint(find_model(str(small)))
    assert torch.allclose(logits(read_weights(source, torch.float32, False)), logits(made), atol=1e-5)
