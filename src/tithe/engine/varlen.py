"""Attention over a pack in one call, by the first way of this machine that is true.

A pack is many sequences in one row, each seeing only itself and what it continues (`Cuts`). One call a segment is slow
on a GPU, where records are short. The ways that read the whole row at once come in several builds and versions, with
other causal alignments and other arguments, so none is taken on its word: each is held against attention segment by
segment in float32, and the reason why one is not taken is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from tithe.engine.cuts import Cuts

# How far a way may be from the truth, as a share of 1 + |value|, on random numbers of size 1. A wrong one (another
# causal alignment, a segment that sees its neighbour) is off by tenths.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Ask:
    """What a model asks of its attention.

    Args:
        scaling: of the products of queries and keys.
        window: how many tokens a query sees, itself included; None for all.
        softcap: c of c * tanh(score / c); None for none.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None

    @property
    def flash_window(self) -> tuple[int, int]:
        """Tokens to the left and right of a query's own."""
        return (-1 if self.window is None else self.window - 1, 0)


# query (1, heads, tokens, dim), key and value (1, key heads, tokens, dim) -> (1, tokens, heads, dim)
Way: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Cuts, Ask], torch.Tensor]


def rows(x: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, dim) -> (tokens, heads, dim), without a copy."""
    return x[0].transpose(0, 1)


def repeated(query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Keys or values with as many heads as there are queries'."""
    times = query.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def by_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Ask) -> torch.Tensor:
    """The flash-attn package."""
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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Ask, *, grouped: bool
) -> torch.Tensor:
    """The `varlen_attn` of torch, whose arguments differ between versions."""
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


def by_flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Ask) -> torch.Tensor:
    """FlexAttention under a mask of segments; compiled on a GPU, else every score is written out."""
    from torch.nn.attention.flex_attention import flex_attention

    power_of_two = query.shape[1] & (query.shape[1] - 1) == 0
    if not power_of_two:  # its kernels group no other numbers of heads
        key, value = repeated(query, key), repeated(query, value)
    attend: Any = compiled_flex() if query.device.type == "cuda" else flex_attention
    out: torch.Tensor = attend(
        query,
        *(cuts.gathered(x, 2) for x in (key, value)),
        score_mod=None if ask.softcap is None else capped(ask.softcap),
        block_mask=cuts.block_mask(ask.window),
        scale=ask.scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out.transpose(1, 2)


@cache
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@cache
def capped(softcap: float) -> Any:
    def cap(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def by_segment(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: Cuts, ask: Ask) -> torch.Tensor:
    """One call for each segment: what runs everywhere, and what the others are held against."""
    key, value = repeated(query, key), repeated(query, value)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    start = 0
    for length, earlier in zip(cuts.lengths, cuts.before or [()] * len(cuts.lengths), strict=True):
        own = slice(start, start + length)
        k, v = (torch.cat([x[:, :, part] for part in (*earlier, own)], dim=2) for x in (key, value))
        out[0, own] = one_segment(query[:, :, own], k, v, ask)[0].transpose(0, 1)
        start += length
    return out


def one_segment(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ask: Ask) -> torch.Tensor:
    """The last of `key`'s positions are the queries': (1, heads, tokens, dim)."""
    tokens, keys = query.shape[2], key.shape[2]
    if ask.softcap is None and ask.window is None and tokens == keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=ask.scaling)
    distance = torch.arange(keys - tokens, keys, device=query.device)[:, None] - torch.arange(keys, device=query.device)
    seen = distance >= 0
    if ask.window is not None:
        seen &= distance < ask.window
    if ask.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=ask.scaling)
    scores = (query @ key.transpose(2, 3)).float() * ask.scaling
    scores = (ask.softcap * torch.tanh(scores / ask.softcap)).masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


BY_SEGMENT = "one call a segment"
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "flash-attn": by_flash,
        "torch varlen_attn": partial(by_torch, grouped=True),
        "torch varlen_attn, heads repeated": partial(by_torch, grouped=False),
        "FlexAttention": by_flex,
        BY_SEGMENT: by_segment,
    }
)


@dataclass(frozen=True)
class Kind:
    """What decides which ways are true."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    dim: int
    value_dim: int
    windowed: bool
    capped: bool


@dataclass
class Varlen:
    """Attention over a pack by the first true way for each kind of call, found when that kind first comes.

    Sinks are not known here.

    Args:
        ways: what is tried, in order; None for all on a GPU, and one call a segment elsewhere.

    Attributes:
        chosen: by kind the name of its way.
        refused: by kind why ways before it were not taken.
    """

    ways: Mapping[str, Way] | None = None
    chosen: dict[Kind, str] = field(default_factory=dict, init=False)
    refused: dict[Kind, dict[str, str]] = field(default_factory=dict, init=False)

    def __call__(
        self,
        query: torch.Tensor,  # (1, heads, tokens, dim)
        key: torch.Tensor,  # (1, key heads, tokens, dim), not repeated
        value: torch.Tensor,
        cuts: Cuts,
        *,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Causal attention within each segment and what it continues: (1, tokens, heads, dim).

        Raises:
            ValueError: the segments are not as long as the row.
        """
        if cuts.tokens != query.shape[2]:
            raise ValueError(f"{query.shape[2]} tokens, but segments of {cuts.tokens}")
        if window is not None and window >= cuts.longest_key:
            window = None  # it hides nothing
        shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        kind = Kind(query.device, query.dtype, *shape, window is not None, softcap is not None)
        ask = Ask(query.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap)
        return self.there(kind)[self.way(kind)](query, key, value, cuts, ask)

    def there(self, kind: Kind) -> Mapping[str, Way]:
        if self.ways is not None:
            return self.ways
        return WAYS if kind.device.type == "cuda" else {BY_SEGMENT: by_segment}

    def way(self, kind: Kind) -> str:
        """The name of what is taken for this kind of call.

        Raises:
            RuntimeError: no way is true.
        """
        if kind not in self.chosen:
            reasons = self.refused.setdefault(kind, {})
            for name, way in self.there(kind).items():
                reason = untrue(way, kind)
                if reason is None:
                    self.chosen[kind] = name
                    break
                reasons[name] = reason
            else:
                raise RuntimeError(f"no attention over packs is true here: {reasons}")
        return self.chosen[kind]


def untrue(way: Way, kind: Kind) -> str | None:
    """None if a way gives what one call a segment gives in float32, else why it is not taken."""
    try:
        off = max(distance(way, kind, cuts) for cuts in probes(kind.device))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        return f"`{error.name}` is not installed"
    except Exception as error:  # kernels refuse dtypes, devices and shapes in their own ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None if off <= TOLERANCE[kind.dtype] else f"off by {off:.3g}"


def probes(device: torch.device) -> list[Cuts]:
    """Two rows of other lengths, as a compiled kernel may be true for its first alone; in one, segments continue."""
    continued: list[tuple[slice, ...]] = [(), (slice(0, 9),), (), (slice(0, 9), slice(37, 42)), ()]
    return [Cuts([150, 1, 64, 3], device=device), Cuts([37, 5, 129, 30, 17], continued, device)]


def distance(way: Way, kind: Kind, cuts: Cuts) -> float:
    """How far the way is from the truth at most, as a share of 1 + |value|."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((kind.heads, kind.dim), (kind.key_heads, kind.dim), (kind.key_heads, kind.value_dim))
    query, key, value = (
        torch.randn(1, heads, cuts.tokens, dim, generator=generator).to(kind.device, kind.dtype)
        for heads, dim in shapes
    )
    ask = Ask(kind.dim**-0.5, 20 if kind.windowed else None, 1.0 if kind.capped else None)
    with torch.inference_mode():
        truth = by_segment(query.float(), key.float(), value.float(), cuts, ask)
        found = way(query, key, value, cuts, ask).float()
    if found.shape != truth.shape:
        raise ValueError(f"shape {tuple(found.shape)} instead of {tuple(truth.shape)}")
    return float(((found - truth).abs() / (1 + truth.abs())).nan_to_num(nan=float("inf")).max())
