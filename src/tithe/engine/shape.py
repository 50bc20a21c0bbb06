"""What a forward pass of a model costs, from its config and weight headers alone. No torch here."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tithe.engine.sources import ModelSource
from tithe.errors import ModelError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}  # of a weight in a block
TABLES = {"fp8": 2}  # of one in the embedding and the output head, where it is another dtype


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Args:
        parameters: all of them.
        embedding: of those, the token embedding and, where it is not tied to it, the output head.
        head: vocabulary x width, the work of one scored token.
        exact: counted from the weights; else estimated from the config.
    """

    parameters: int
    embedding: int
    head: int
    exact: bool

    def flops(self, tokens: int, scored: int) -> float:
        """Multiply-adds x 2 of reading `tokens` and scoring `scored` of them; attention's own product left out."""
        return 2.0 * ((self.parameters - self.embedding) * tokens + self.head * scored)

    def memory(self, dtype: str) -> int:
        """Bytes of the weights in a dtype; of fp8 without its scales, 4 bytes a row, and its norms in bf16."""
        tables = TABLES.get(dtype, BYTES[dtype])
        return (self.parameters - self.embedding) * BYTES[dtype] + self.embedding * tables


def model_shape(source: ModelSource) -> Shape:
    """Count a model from its safetensors headers, or estimate it from its config when only that is here."""
    config = source.config
    config = config.get("text_config") or config
    width = size(config, "hidden_size", "n_embd", "d_model")
    vocabulary = size(config, "vocab_size")
    if source.weights:
        shapes = [shape for file in source.weights for shape in tensor_shapes(file)]
        wide = [shape for shape in shapes if len(shape) == 2 and shape[0] == vocabulary and shape[1] == width]
        return Shape(sum(map(prod, shapes)), sum(map(prod, wide)), vocabulary * width, exact=True)
    layers = size(config, "num_hidden_layers", "n_layer")
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    heads = config.get("num_attention_heads") or config.get("n_head") or 1  # recurrent models have none
    head_width = config.get("head_dim") or width // heads
    key_heads = config.get("num_key_value_heads") or heads
    attention = 2 * width * head_width * (heads + key_heads)
    tables = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(layers * (attention + 3 * width * inner) + tables, tables, vocabulary * width, exact=False)


def size(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ModelError(f"the model's config has none of: {', '.join(names)}")


def tensor_shapes(file: Path) -> list[list[int]]:
    """Shapes in a safetensors file, from its header: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise ModelError(f"`{file}` is not a safetensors file: {error}", hint="download or copy it again") from error
