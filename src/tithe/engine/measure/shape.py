"""Compute what a forward pass costs, from a model's config and weight headers only. Imports no torch.

`ModelShape.flops` counts the products with weights. Attention's own products, and the experts of a mixture that a token
is not sent to, are counted by functions of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tithe.engine.model_source import ModelSource
from tithe.errors import ModelError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}  # per weight in a block
TABLES = {"fp8": 2}  # per weight in the embedding and the output head, if that differs
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TAKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
LOCAL, FULL = ("sliding_attention", "chunked_attention"), ("full_attention", "attention")
Window = int | None


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder.

    Args:
        parameters: number of all parameters.
        embedding: number of those in the token embedding and, if not tied to it, the output head.
        head: vocabulary x width, the multiply-adds of one scored token.
        exact: whether they are counted from the weights; else they are estimated from the config.
    """

    parameters: int
    embedding: int
    head: int
    exact: bool

    def flops(self, tokens: int, scored: int) -> float:
        """Count multiply-adds x 2 of reading `tokens` and scoring `scored` of them, without attention's products."""
        return 2.0 * ((self.parameters - self.embedding) * tokens + self.head * scored)

    def memory(self, dtype: str) -> int:
        """Count the weights' bytes in a dtype; for fp8 without scales (4 bytes per row), and with norms as fp8."""
        tables = TABLES.get(dtype, BYTES[dtype])
        return (self.parameters - self.embedding) * BYTES[dtype] + self.embedding * tables


def model_shape(source: ModelSource) -> ModelShape:
    """Count a model's sizes from its weights' headers, or estimate them from its config if there are no weights."""
    config = source.config
    config = config.get("text_config") or config
    width = size(config, "hidden_size", "n_embd", "d_model")
    vocabulary = size(config, "vocab_size")
    if source.weights:
        shapes = [shape for _, shape in source.tensors.values()]
        # Embedding and output head are recognised by their shape, as their names differ between models.
        wide = [shape for shape in shapes if len(shape) == 2 and shape[0] == vocabulary and shape[1] == width]
        return ModelShape(sum(map(prod, shapes)), sum(map(prod, wide)), vocabulary * width, exact=True)
    layers = size(config, "num_hidden_layers", "n_layer")
    inner = size(config, "intermediate_size", "n_inner", default=4 * width)
    heads = size(config, "num_attention_heads", "n_head", default=1)  # recurrent models have none
    head_width = size(config, "head_dim", default=width // heads)
    key_heads = size(config, "num_key_value_heads", default=heads)
    attention = 2 * width * head_width * (heads + key_heads)  # q and o have `heads`, k and v `key_heads`
    tables = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return ModelShape(layers * (attention + 3 * width * inner) + tables, tables, vocabulary * width, exact=False)


def size(config: dict[str, Any], *names: str, default: int | None = None) -> int:
    """Return the first of these config values that is a positive integer.

    Raises:
        ModelError: there is none, and no default.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        raise ModelError(f"the model's config has none of: {', '.join(names)}")
    return default


def windows(config: Mapping[str, Any]) -> Counter[Window]:
    """Count the attention layers by window, None for full attention; other kinds of layers are left out."""
    config = config.get("text_config") or config
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0
    window = config.get("sliding_window") or None
    kinds = config.get("layer_types")  # newer configs name each layer's kind
    if kinds:
        return Counter(window if kind in LOCAL else None for kind in kinds if kind in LOCAL + FULL)
    if not heads(config):
        return Counter()
    if config.get("use_sliding_window") is False:  # Qwen2's config has a window that it does not use
        window = None
    return Counter({window: int(layers)})


def heads(config: Mapping[str, Any]) -> int:
    """Count the query heads; 0 for models without attention."""
    return int(config.get("num_attention_heads") or config.get("n_head") or config.get("num_heads") or 0)


def head_width(config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 0
    return int(config.get("head_dim") or width // max(1, heads(config)))


def attention_flops(config: Mapping[str, Any], keys: Mapping[Window, int]) -> float:
    """Count the multiply-adds x 2 of attention's own products, q k and weights v: 4 x width x keys seen, per layer.

    Args:
        config: of the model.
        keys: by window, the total number of keys that tokens see: 1 + 2 + ... per sequence, each at most the window.
    """
    config = config.get("text_config") or config
    width = heads(config) * head_width(config)
    return float(sum(4 * width * keys[window] * layers for window, layers in windows(config).items()))


def idle_parameters(config: Mapping[str, Any], weights: Iterable[tuple[str, int]]) -> int:
    """Count the expert parameters that a token does not use; 0 for a model without experts.

    Args:
        config: of the model.
        weights: name and number of parameters of each tensor.
    """
    config = config.get("text_config") or config
    there = next((config[name] for name in EXPERTS if config.get(name)), 0)
    taken = next((config[name] for name in TAKEN if config.get(name)), there)
    if not there or taken >= there:
        return 0
    experts = sum(count for name, count in weights if ".experts." in name)
    return int(experts * (there - taken) / there)
