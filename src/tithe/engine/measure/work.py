"""What a model has to compute for the tokens it reads, from its config alone. No torch here.

`Shape.flops` counts the products with weights. Here is what it leaves out: attention's own products, and that a mixture
of experts uses some of its weights alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TAKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
LOCAL, FULL = ("sliding_attention", "chunked_attention"), ("full_attention", "attention")
Window = int | None


def windows(config: Mapping[str, Any]) -> Counter[Window]:
    """How many layers have which attention window, None for one without bounds; layers of another kind are left out."""
    config = config.get("text_config") or config
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0
    window = config.get("sliding_window") or None
    kinds = config.get("layer_types")
    if kinds:
        return Counter(window if kind in LOCAL else None for kind in kinds if kind in LOCAL + FULL)
    if not heads(config):
        return Counter()
    if config.get("use_sliding_window") is False:
        window = None
    return Counter({window: int(layers)})


def heads(config: Mapping[str, Any]) -> int:
    """Query heads; 0 of models without attention."""
    return int(config.get("num_attention_heads") or config.get("n_head") or config.get("num_heads") or 0)


def head_width(config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 0
    return int(config.get("head_dim") or width // max(1, heads(config)))


def attention_flops(config: Mapping[str, Any], keys: Mapping[Window, int]) -> float:
    """Multiply-adds x 2 of queries with keys, and of weights with values: 4 x width x keys seen, in each layer.

    Args:
        config: of the model.
        keys: by window, how many keys all tokens see together: 1 + 2 + ... of a sequence, each at most the window.
    """
    config = config.get("text_config") or config
    width = heads(config) * head_width(config)
    return float(sum(4 * width * keys[window] * layers for window, layers in windows(config).items()))


def idle_parameters(config: Mapping[str, Any], weights: Iterable[tuple[str, int]]) -> int:
    """Parameters of experts that a token is not sent to; 0 where there are no experts.

    Args:
        config: of the model.
        weights: name and number of parameters of every tensor.
    """
    config = config.get("text_config") or config
    there = next((config[name] for name in EXPERTS if config.get(name)), 0)
    taken = next((config[name] for name in TAKEN if config.get(name)), there)
    if not there or taken >= there:
        return 0
    experts = sum(count for name, count in weights if ".experts." in name)
    return int(experts * (there - taken) / there)
