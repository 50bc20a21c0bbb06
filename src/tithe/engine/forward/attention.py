"""Attention over a pack: many sequences in one row, each seeing only itself.

Registered with transformers under `PACKED`; models then run their own code for everything but this. Position jumps
and masks are not trusted to tell the sequences apart (a missed hint would let them read each other, silently): how the
row is cut is handed over beside the model, per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.varlen import Varlen
from tithe.engine.forward.ways import Ask, by_segment

PACKED = "tithe_packed"


class _Pack(threading.local):
    cuts: Cuts = Cuts(())
    attend: Varlen | None = None
    saw_window: bool = False


_pack = _Pack()


@contextmanager
def segments(cuts: Cuts, attend: Varlen | None = None) -> Iterator[_Pack]:
    """Tell the attention of this thread how the row is cut.

    Args:
        cuts: of the row; all layers share what is made of them.
        attend: what reads the whole row in one call; None for one call a segment.

    Yields:
        An object whose `saw_window` says afterwards whether the model asked for a sliding window.
    """
    _pack.cuts, _pack.attend, _pack.saw_window = cuts, attend, False
    try:
        yield _pack
    finally:
        _pack.cuts, _pack.attend = Cuts(()), None


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
        NoWayError: nothing reads the whole row truly.
    """
    if attention_mask is not None or position_bias is not None:
        raise ValueError("packed attention takes no mask and no position bias")
    cuts, attend = _pack.cuts.on(query.device), _pack.attend
    if cuts.tokens != query.shape[2]:
        raise ValueError(f"{query.shape[2]} tokens, but segments of {cuts.tokens}")
    if sliding_window is not None:
        _pack.saw_window = True
    if attend is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return by_segment(query, key, value, cuts, Ask(scaling, sliding_window, softcap), s_aux), None
    if s_aux is not None:
        raise ValueError("attention sinks are not known to what reads a whole row")
    return attend(query, key, value, cuts, scaling=scaling, window=sliding_window, softcap=softcap), None


def register() -> None:
    """Make `PACKED` known to transformers; without a mask function under that name no mask is built for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
