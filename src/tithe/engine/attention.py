"""Attention over a pack: many sequences in one row, each seeing only itself.

Registered with transformers under `PACKED`; models then run their own code for everything but this. Position jumps
and masks are not trusted to tell the sequences apart (a missed hint would let them read each other, silently): their
lengths are handed over beside the model, per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tithe.engine.cuts import Seen

PACKED = "tithe_packed"


class _Pack(threading.local):
    lengths: Sequence[int] = ()
    before: Sequence[Seen] = ()
    masks: dict[tuple[int, int, int | None], torch.Tensor]
    saw_window: bool = False


_pack = _Pack()


@contextmanager
def segments(lengths: Sequence[int], before: Sequence[Seen] | None = None) -> Iterator[_Pack]:
    """Tell the attention of this thread how the row is cut.

    Args:
        lengths: tokens of each segment, in order; their sum is the row.
        before: per segment the tokens of earlier segments that it continues and therefore sees, from the first
            position on; None where no segment continues another.

    Yields:
        An object whose `saw_window` says afterwards whether the model asked for a sliding window.
    """
    _pack.lengths, _pack.before = lengths, before or [()] * len(lengths)
    _pack.masks, _pack.saw_window = {}, False
    try:
        yield _pack
    finally:
        _pack.lengths, _pack.before, _pack.masks = (), (), {}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, dim)
    key: torch.Tensor,  # (1, key heads, tokens, dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment, with windows, soft-capping and sinks as the model asks for them.

    Returns:
        (1, tokens, heads, dim), and no weights.

    Raises:
        ValueError: the model adds something that is not known here; the engine then takes another road.
    """
    if attention_mask is not None or position_bias is not None:
        raise ValueError("packed attention takes no mask and no position bias")
    if sum(_pack.lengths) != query.shape[2]:
        raise ValueError(f"{query.shape[2]} tokens, but segments of {sum(_pack.lengths)}")
    if sliding_window is not None:
        _pack.saw_window = True
    plain = softcap is None and s_aux is None
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])  # (1, tokens, heads, dim)
    start = 0
    for length, earlier in zip(_pack.lengths, _pack.before, strict=True):
        part = slice(start, start + length)
        before = sum(seen.stop - seen.start for seen in earlier)
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]
        if before:
            k, v = (torch.cat([x[:, :, seen] for seen in (*earlier, part)], dim=2) for x in (key, value))
        window = sliding_window if sliding_window is not None and sliding_window < length + before else None
        if not plain:
            piece = spelled_out(q, k, v, scaling, visible(length, before, window, q.device), softcap, s_aux)
        elif before or window is not None:
            mask = visible(length, before, window, q.device)
            piece = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        else:
            piece = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        out[0, part] = piece[0].transpose(0, 1)
        start += length
    return out, None


def visible(length: int, before: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees: (length, before + length) bool, made once per row and shape."""
    key = (length, before, window)
    if key not in _pack.masks:
        at = torch.arange(before, before + length, device=device)
        distance = at[:, None] - torch.arange(before + length, device=device)[None, :]
        seen = distance >= 0
        _pack.masks[key] = seen if window is None else seen & (distance < window)
    return _pack.masks[key]


def spelled_out(
    q: torch.Tensor,  # (1, heads, tokens, dim)
    k: torch.Tensor,  # (1, heads, keys, dim)
    v: torch.Tensor,
    scaling: float | None,
    seen: torch.Tensor,  # (tokens, keys)
    softcap: float | None,
    sinks: torch.Tensor | None,  # (heads,)
) -> torch.Tensor:
    """Attention step by step, for what the fused kernels cannot do: soft-capping and sinks."""
    weights = (q @ k.transpose(2, 3)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    weights = weights.float().masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)
        weights = torch.cat([weights, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = weights.softmax(dim=-1)
    return weights.to(v.dtype) @ v


def register() -> None:
    """Make `PACKED` known to transformers; without a mask function under that name no mask is built for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
