"""A GGUF file of a tiny Llama, written by the `gguf` package from a folder that `make_model` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """`blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`."""
    stem, _, last = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, block, part = stem.split(".", 3)
        return f"blk.{block}.{NAMES[part]}.{last}"
    return f"{NAMES[stem]}.{last}"


def interleaved(weight: Any, heads: int) -> Any:
    """Order the rows of a query or key projection as llama.cpp does: each head's rotary pairs side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    folder: Path,
    file: Path,
    *,
    quantised: str = "Q8_0",
    architecture: str = "llama",
    change: Callable[[Any], None] = lambda writer: None,
    left_out: str = "-",
) -> Path:
    """Write the model in `folder` into a GGUF file.

    Args:
        folder: of a Llama.
        file: to write.
        quantised: ggml's name of the type of all matrices.
        architecture: the name that the header gives.
        change: adds values to the header.
        left_out: tensors and values whose names hold this are not written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(file, architecture)
    numbers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "vocab_size": config["vocab_size"],
    }
    for name, number in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", number)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    if left_out not in "tokenizer":
        add_tokenizer(writer, folder)
    change(writer)
    kind = GGMLQuantizationType[quantised]
    for name, weight in load_file(folder / "model.safetensors").items():
        if left_out in gguf_name(name):
            continue
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                weight = interleaved(weight, config[heads])
        matrix = weight.ndim > 1
        data = quantize(weight, kind) if matrix else weight.astype(np.float32)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_tokenizer(writer: Any, folder: Path) -> None:
    from gguf import TokenType

    saved = json.loads((folder / "tokenizer.json").read_text())
    special = {one["content"] for one in saved["added_tokens"]}
    tokens = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
