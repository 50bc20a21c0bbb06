"""What goes through a loaded model, counted and timed from outside by hooks on its backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tithe.engine.measure.matmul import synchronise
from tithe.engine.measure.shape import Window, windows
from tithe.engine.model import LoadedModel


@dataclass
class Meter:
    """Sums over all batches.

    Args:
        device: of the model.
        bounds: attention windows to count keys for.
        backbone_seconds: in the layers; 0 without a clock.
        head_seconds: from hidden states to likelihoods; 0 without a clock.
        tokens: that went through the layers, padding and fillers included.
    """

    device: torch.device
    bounds: Sequence[Window]
    backbone_seconds: float = 0.0
    head_seconds: float = 0.0
    tokens: int = 0
    _keys: list[torch.Tensor] = field(default_factory=list, repr=False)  # (windows,) of each batch

    @property
    def keys(self) -> dict[Window, int]:
        """Count, by window, the keys that all tokens see together."""
        if not self._keys:
            return dict.fromkeys(self.bounds, 0)
        return dict(zip(self.bounds, torch.stack(self._keys).sum(0).tolist(), strict=True))

    def count(self, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a batch; a hook before the backbone."""
        ids = named.get("input_ids", given[0] if given else None)
        if ids is None:  # a head that is run apart hands hidden states to a stub
            return
        self.tokens += ids.numel()
        seen = keys_seen(ids, named.get("position_ids"), named.get("attention_mask"))
        found = [(seen if window is None else seen.clamp(max=window)).sum() for window in self.bounds]
        if found:
            self._keys.append(torch.stack(found))

    def clocked(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Wrap a call so that its seconds are added to the sum of that name."""

        def timed(*given: Any, **named: Any) -> Any:
            synchronise(self.device)
            began = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                synchronise(self.device)
                setattr(self, name, getattr(self, name) + time.perf_counter() - began)

        return timed


def keys_seen(ids: torch.Tensor, positions: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Count the keys each token sees, itself included; padding sees none.

    Args:
        ids: (rows, tokens).
        positions: the same shape; each token's place in its own sequence. None: rows are sequences.
        mask: the same shape, 0 for padding; None where there is none.
    """
    if positions is not None:
        return positions + 1
    if mask is not None:
        return mask.cumsum(1) * mask
    return torch.arange(1, ids.shape[1] + 1, device=ids.device).expand(ids.shape)


@contextmanager
def metered(loaded: LoadedModel, *, clock: bool = False) -> Iterator[Meter]:
    """Count what is read within; with a clock also time it, for which only one pass may be under way at once.

    On the road `single` the model's own forward runs as a whole: what it takes beyond the backbone is the head's.
    """
    meter = Meter(loaded.device, [*windows(loaded.model.config.to_dict())])
    head, model = loaded.head, loaded.model
    backbone = model if head is None else head.backbone
    hook = backbone.register_forward_pre_hook(meter.count, with_kwargs=True)
    swapped: list[tuple[Any, str]] = []

    def swap(thing: Any, method: str, name: str) -> None:
        vars(thing)[method] = meter.clocked(getattr(thing, method), name)
        swapped.append((thing, method))

    whole = loaded.road == "single" or head is None
    try:
        if clock:
            swap(backbone, "forward", "backbone_seconds")
            if not whole:
                swap(head, "nll", "head_seconds")
            elif head is not None:
                swap(model, "forward", "head_seconds")
        yield meter
    finally:
        hook.remove()
        for thing, method in swapped:
            del vars(thing)[method]
    if whole and head is not None:
        meter.head_seconds -= meter.backbone_seconds
