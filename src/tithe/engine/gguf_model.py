"""Read config, tokenizer and weights of a GGUF file through transformers, which dequantises every tensor.

transformers decides what a value of the file means and how a tensor is unpacked; only the header is parsed here.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.engine.gguf_file import TOKENS, GgufHeader, read_header
from tithe.engine.model_files import demand_sane_sizes, reading_folder
from tithe.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

FILE = "model.gguf"
_exchanging = threading.RLock()  # one thread at a time exchanges `gguf.GGUFReader`


class ParsedFile:
    """What transformers reads of a `gguf.GGUFReader`, made from a header that was checked.

    The reader of the package spends 100 µs on each token of the vocabulary, and each of transformers' calls makes one.

    Args:
        header: of the file.
    """

    def __init__(self, header: GgufHeader) -> None:
        from gguf import GGMLQuantizationType, GGUFValueType, ReaderField, ReaderTensor

        self.fields: dict[str, Any] = {}
        for name, entry in header.entries.items():
            parts = [as_array(value, entry.kind) for value in entry.values]
            places, kind = list(range(len(parts))), GGUFValueType(entry.kind)
            if name == TOKENS:  # transformers counts them here; the tokenizer is read elsewhere
                parts, places, kind = [np.array([0])], [0] * entry.count, GGUFValueType.UINT8
            types = [GGUFValueType.ARRAY, kind] if entry.is_list else [kind]
            self.fields[name] = ReaderField(0, name, parts, places, types)
        # Not a `memmap`, whose every slice is an object of its own; pages are read when a tensor is.
        data = np.asarray(np.memmap(header.path, mode="r"))
        self.tensors = []
        for one in header.tensors:
            packing: Any = GGMLQuantizationType(one.kind)
            raw: Any = data[one.start : one.start + one.size]
            # ggml's shape has the last axis first
            shape: Any
            shape, rows = np.array(one.shape[::-1], dtype=np.uint64), shaped(raw, one.shape, packing)
            count = int(np.prod(shape, dtype=np.uint64))
            self.tensors.append(
                ReaderTensor(one.name, packing, shape, count, one.size, one.start, rows, ReaderField(0, one.name))
            )


def as_array(value: Any, kind: int) -> Any:
    """Return a value as the package's reader holds it: an array of one number, or a text's bytes."""
    return np.frombuffer(value.encode(), dtype=np.uint8) if kind == 8 else np.array([value])


def shaped(raw: Any, shape: tuple[int, ...], kind: Any) -> Any:
    """Return a tensor's bytes as numbers, if it is not quantised, else as rows of blocks."""
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import quant_shape_to_byte_shape

    plain = {Kind.F16: np.float16, Kind.F32: np.float32, Kind.F64: np.float64, Kind.I8: np.int8, Kind.I16: np.int16}
    plain |= {Kind.I32: np.int32, Kind.I64: np.int64}
    if kind in plain:
        return raw.view(plain[kind]).reshape(shape)
    return raw.reshape(quant_shape_to_byte_shape(shape, kind))


@contextmanager
def exchanged(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Exchange an attribute, and put the old one back at the end."""
    old = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextmanager
def alone(path: Path, name: str) -> Iterator[Path]:
    """Give a folder that holds nothing but the file, for transformers to read by its own functions.

    In the file's own folder transformers would also read a `tokenizer_config.json` of another model.

    Args:
        path: the file.
        name: of the model, for messages.
    """
    import gguf
    import transformers.modeling_gguf_pytorch_utils as legacy

    def parsed(*_: Any) -> ParsedFile:
        return ParsedFile(read_header(path, name))

    with (
        tempfile.TemporaryDirectory(prefix="tithe-gguf-") as place,
        _exchanging,
        exchanged(gguf, "GGUFReader", parsed),
        # transformers asks for the map again for every module, and making it takes 25 ms
        exchanged(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        exchanged(legacy, "tqdm", lambda items, **_: items),  # its bar cannot be switched off
    ):
        folder = Path(place)
        (folder / FILE).symlink_to(path)
        yield folder


@lru_cache(maxsize=8)
def config_of(path: Path, name: str, state: tuple[int, ...]) -> dict[str, Any]:
    """Return the config that transformers makes of a file, once as long as the file stays what it is."""
    from transformers import AutoConfig

    header = read_header(path, name)
    demand_known(header, name)
    with reading_folder(f"cannot read the config of `{name}`", path), alone(path, name) as folder:
        config = AutoConfig.from_pretrained(folder, gguf_file=FILE)
    found: dict[str, Any] = config.to_dict()
    for own in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        found.pop(own, None)
    demand_sane_sizes(found, name, "the header")
    demand_causal(header, config, name)
    return found


def gguf_config(path: Path, name: str) -> dict[str, Any]:
    """Return the config of a GGUF file, in the words of `config.json`.

    Raises:
        ModelError: transformers does not read its architecture, or it is not a causal language model.
    """
    read_header(path, name)
    state = path.stat()
    return dict(config_of(path, name, (state.st_size, state.st_mtime_ns, state.st_ino)))


def demand_known(header: GgufHeader, name: str) -> None:
    """Raise if transformers does not read this architecture.

    Raises:
        ModelError: names those that it reads.
    """
    known = known_architectures()
    if header.architecture not in known:
        raise ModelError(
            f"`{name}` has the architecture `{header.architecture}`, and transformers reads no such GGUF file",
            hint=f"give the model as a folder with `.safetensors` files; GGUF files are read of: {', '.join(known)}",
        )


def known_architectures() -> list[str]:
    """Return the architectures of GGUF files that transformers reads, by the names in the files."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    found = {*GGUF_SUPPORTED_ARCHITECTURES}
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS  # type: ignore[attr-defined]
    except ImportError:  # before transformers 5.20 all went by one way
        pass
    else:
        found |= {*GGUF_CONFIG_ARCHS}
    files = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
    return sorted({files.get(one, one) for one in found})


def demand_causal(header: GgufHeader, config: Any, name: str) -> None:
    """Raise if transformers has no causal language model for the architecture.

    Raises:
        ModelError: it is an encoder, or an encoder-decoder.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"`{name}` is not a causal language model but a `{header.architecture}`",
            hint="give a causal language model",
        )


def gguf_tokenizer(path: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, with its chat template.

    Raises:
        ModelError: transformers cannot make one of it.
    """
    from transformers import AutoTokenizer

    gguf_config(path, name)  # raises where there is no use in trying
    with reading_folder(f"cannot load the tokenizer of `{name}`", path), alone(path, name) as folder:
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    made.name_or_path = str(path)
    return made


def gguf_weights(path: Path, name: str, dtype: torch.dtype, **more: Any) -> tuple[Any, dict[str, Any]]:
    """Return the dequantised model, and transformers' account of missing and surplus tensors.

    Args:
        path: the file.
        name: of the model, for messages.
        dtype: of the weights.
        more: further arguments of `from_pretrained`.

    Raises:
        ModelError: the file does not hold the tensors of its architecture.
    """
    from transformers import AutoModelForCausalLM

    gguf_config(path, name)  # raises where there is no use in trying
    with reading_folder(f"cannot load model `{name}`", path), alone(path, name) as folder:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=dtype, output_loading_info=True, **always_dequantised(), **more
        )
    model, info = loaded
    # The weights are plain now. What is left of the quantiser would keep the model from being trained and saved.
    for owner, left in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, left):
            delattr(owner, left)
    model.is_quantized = False
    model.name_or_path = model.config._name_or_path = str(path)
    return model, info


def always_dequantised() -> dict[str, Any]:
    """Return the setting by which transformers unpacks weights even where it could compute with packed ones.

    Kernels for packed weights compute other numbers, and only some architectures have them.
    """
    try:
        from transformers import GgufConfig
    except ImportError:  # older versions always unpack
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def note_on(path: Path, name: str, dtype: str | None = None) -> str:
    """Say in one line that the weights are dequantised, and which tensors are not read.

    Args:
        path: the file.
        name: of the model, for messages.
        dtype: of the dequantised weights, if it is known.
    """
    header = read_header(path, name)
    kinds = header.types
    said = f"note: `{path.name}` holds weights in {', '.join(kinds[:3])}; they are dequantised" + (
        f" to {dtype}" if dtype else ""
    )
    if header.unread:
        said += (
            f"; transformers does not read `{header.unread[0]}`, which scales the rotary embedding: long texts get "
            "other losses than from the original model"
        )
    return said
