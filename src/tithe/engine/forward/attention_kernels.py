"""Attention kernels for a pack: several builds of flash attention, a compiled one, and one call per segment.

All take `Cuts` for where sequences end and what they continue, and keys and values with the number of heads that the
model gives them, and return `(1, tokens, heads, dim)`. `attention.py` checks which are correct on a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from tithe.engine.forward.cuts import Cuts
from tithe.engine.host import on_device

FLEX_KINDS = 64  # how often one kernel may be recompiled


@dataclass(frozen=True)
class Call:
    """The settings of one attention call.

    Args:
        scaling: factor on the products of queries and keys.
        window: how many tokens a query sees, its own included; None for all.
        softcap: c in c * tanh(score / c); None for no cap.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None

    @property
    def flash_window(self) -> tuple[int, int]:
        """Return the window in flash-attn's form: tokens to the left and right of a query's own, -1 for no bound."""
        return (-1 if self.window is None else self.window - 1, 0)


# query (1, heads, tokens, dim), key and value (1, key heads, tokens, dim) -> (1, tokens, heads, dim)
AttentionKernel: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Cuts, Call], torch.Tensor]


def rows(x: torch.Tensor) -> torch.Tensor:
    """Return (1, heads, tokens, dim) as (tokens, heads, dim), without a copy."""
    return x[0].transpose(0, 1)


def repeated(query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Repeat keys or values to the number of query heads, for kernels without grouped-query attention."""
    times = query.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def by_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Call) -> torch.Tensor:
    """Attend with the flash-attn package."""
    attend = import_module("flash_attn").flash_attn_varlen_func
    ends = (cuts.query_ends, cuts.key_ends, cuts.longest_query, cuts.longest_key)
    out: torch.Tensor = attend(
        rows(query),
        *(cuts.gathered(rows(x)) for x in (key, value)),
        *ends,
        softmax_scale=ask.scaling,
        causal=True,
        window_size=(-1, -1) if ask.window is None else ask.flash_window,
        softcap=ask.softcap or 0.0,
    )
    return out[None]


def by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Call, *, grouped: bool
) -> torch.Tensor:
    """Attend with torch's `varlen_attn`, whose arguments differ between versions."""
    attend = import_module("torch.nn.attention.varlen").varlen_attn
    takes = parameters(attend)
    more: dict[str, Any] = {}
    if ask.softcap is not None:
        raise NotImplementedError("it takes no soft cap")
    if "window_size" in takes:
        more["window_size"] = ask.flash_window
    elif ask.window is not None:
        raise NotImplementedError("it takes no sliding window")
    else:
        more["is_causal"] = True
    if "scale" in takes:
        more["scale"] = ask.scaling
    elif abs(ask.scaling * query.shape[-1] ** 0.5 - 1) > 1e-6:
        raise NotImplementedError("it takes no scaling")
    if grouped:
        more |= {"enable_gqa": True} if "enable_gqa" in takes else {}
    else:
        key, value = repeated(query, key), repeated(query, value)
    ends = (cuts.query_ends, cuts.key_ends, cuts.longest_query, cuts.longest_key)
    out: torch.Tensor = attend(rows(query), *(cuts.gathered(rows(x)) for x in (key, value)), *ends, **more)
    return out[None]


@cache
def parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def by_flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Call) -> torch.Tensor:
    """Attend with FlexAttention and a mask of segments; compiled on a GPU, elsewhere with all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    power_of_two = query.shape[1] & (query.shape[1] - 1) == 0
    if not power_of_two:  # its kernels cannot group other numbers of heads
        key, value = repeated(query, key), repeated(query, value)
    attend: Any = compiled_flex() if query.device.type == "cuda" else flex_attention
    with on_device(query.device):
        out: torch.Tensor = attend(
            query,
            *(cuts.gathered(x, 2) for x in (key, value)),
            score_mod=None if ask.softcap is None else capped(ask.softcap, query.device),
            block_mask=cuts.block_mask(ask.window),
            scale=ask.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    return out.transpose(1, 2)


@cache
def compiled_flex() -> Any:
    """Return compiled FlexAttention, which is recompiled per kind of row: window or not, keys gathered or not, ...

    Beyond torch's recompile limit it would silently run uncompiled, with every score in memory; `fullgraph` makes it
    raise instead.
    """
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(config, name, max(getattr(config, name), FLEX_KINDS))
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@cache
def capped(softcap: float, device: torch.device) -> Any:
    """Return FlexAttention's score function for a soft cap, as in Gemma 2: c * tanh(score / c)."""
    limit = torch.full((1,), softcap, device=device)  # a Python number cannot be compiled into the kernel

    def cap(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return limit[0] * torch.tanh(score / limit[0])

    return cap


def by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cuts: Cuts,
    ask: Call,
    sinks: torch.Tensor | None = None,  # (heads,)
) -> torch.Tensor:
    """Attend in one call per segment: it runs everywhere, supports sinks, and is the reference for the others."""
    key, value = repeated(query, key), repeated(query, value)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    start = 0
    for length, earlier in zip(cuts.lengths, cuts.before or [()] * len(cuts.lengths), strict=True):
        own = slice(start, start + length)
        k, v = key[:, :, own], value[:, :, own]
        if earlier:
            k, v = (torch.cat([x[:, :, part] for part in (*earlier, own)], dim=2) for x in (key, value))
        out[0, own] = one_segment(query[:, :, own], k, v, cuts, ask, sinks)[0].transpose(0, 1)
        start += length
    return out


def one_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cuts: Cuts,
    ask: Call,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend within one segment, whose queries are the last positions of its keys: (1, heads, tokens, dim)."""
    tokens, keys = query.shape[2], key.shape[2]
    window = None if ask.window is None or ask.window >= keys else ask.window  # a wider window hides nothing
    plain = ask.softcap is None and sinks is None
    if plain and window is None and tokens == keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=ask.scaling)
    seen = cuts.visible(tokens, keys - tokens, window)
    if plain:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=ask.scaling)
    return spelled_out(query, key, value, seen, ask, sinks)


def spelled_out(
    query: torch.Tensor,  # (1, heads, tokens, dim)
    key: torch.Tensor,  # (1, heads, keys, dim)
    value: torch.Tensor,
    seen: torch.Tensor,  # (tokens, keys)
    ask: Call,
    sinks: torch.Tensor | None,  # (heads,)
) -> torch.Tensor:
    """Attend step by step, for what fused kernels cannot do: soft-capping and sinks."""
    weights = (query @ key.transpose(2, 3)) * ask.scaling  # (1, heads, tokens, keys)
    if ask.softcap is not None:
        weights = torch.tanh(weights / ask.softcap) * ask.softcap
    weights = weights.float().masked_fill(~seen, float("-inf"))
    if sinks is not None:
        # A sink is one more score per head that takes its share of the softmax and attends to no value.
        sink = sinks.float().view(1, -1, 1, 1).expand(1, -1, query.shape[2], 1)
        weights = torch.cat([weights, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = weights.softmax(dim=-1)
    return weights.to(value.dtype) @ value


BY_SEGMENT = "one call a segment"
KERNELS: Mapping[str, AttentionKernel] = MappingProxyType(
    {
        "flash-attn": by_flash,
        "torch varlen_attn": partial(by_torch, grouped=True),
        "torch varlen_attn, heads repeated": partial(by_torch, grouped=False),
        "FlexAttention": by_flex,
        BY_SEGMENT: by_segment,
    }
)
# Kernels for the packed forward path on a GPU, where one call per segment would be slower than padded rows.
WHOLE_ROW: Mapping[str, AttentionKernel] = MappingProxyType(
    {name: kernel for name, kernel in KERNELS.items() if name != BY_SEGMENT}
)
