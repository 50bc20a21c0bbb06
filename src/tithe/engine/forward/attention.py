"""Attention over a pack, many sequences in one row: each sees only itself and what it continues (`Cuts`).

Registered with transformers under `PACKED`; models then run their own code for everything but this. Position jumps
and masks are not trusted to tell the sequences apart (a missed hint would let them read each other, silently): how the
row is cut is handed over beside the model, per thread.

One call a segment is slow on a GPU, where records are short. The ways that read the whole row at once come in several
builds and versions, with other causal alignments and other arguments, so none is taken on its word: each is held
against attention segment by segment in float32, and the reason why one is not taken is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tithe.engine.forward.cuts import Cuts
from tithe.engine.forward.ways import BY_SEGMENT, WAYS, WHOLE_ROW, Call, Way, by_segment

# How far a way may be from the truth, as a share of 1 + |value|, on random numbers of size 1. A wrong one (another
# causal alignment, a segment that sees its neighbour) is off by tenths.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PACKED = "tithe_packed"


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


class NoWayError(RuntimeError):
    """No way of those that were to be tried is true."""


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
        """Attend causally within each segment and what it continues: (1, tokens, heads, dim).

        A window that hides nothing in this row is left out. What a longer row would need is found at once all the same,
        so that nothing is chosen, or found wanting, in the middle of a run.

        Raises:
            ValueError: the segments are not as long as the row.
            NoWayError: no way is true.
        """
        if cuts.tokens != query.shape[2]:
            raise ValueError(f"{query.shape[2]} tokens, but segments of {cuts.tokens}")
        hides = window is not None and window < cuts.longest_key
        shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        kind = Kind(query.device, query.dtype, *shape, hides, softcap is not None)
        if window is not None:
            self.way(replace(kind, windowed=not hides))
            window = window if hides else None
        ask = Call(query.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap)
        return self.there(kind)[self.way(kind)](query, key, value, cuts, ask)

    def there(self, kind: Kind) -> Mapping[str, Way]:
        if self.ways is not None:
            return self.ways
        return WAYS if kind.device.type == "cuda" else {BY_SEGMENT: by_segment}

    def way(self, kind: Kind) -> str:
        """Return the name of the way taken for this kind of call.

        Raises:
            NoWayError: no way is true.
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
                raise NoWayError(f"no attention over packs is true here ({listed(reasons)})")
        return self.chosen[kind]

    def report(self) -> list[dict[str, Any]]:
        """Report which way was taken for which kind of call, and why not those before it."""
        return [
            {"heads": kind.heads, "key_heads": kind.key_heads, "dim": kind.dim, "windowed": kind.windowed,
             "capped": kind.capped, "taken": name, "refused": self.refused[kind]}
            for kind, name in self.chosen.items()
        ]  # fmt: skip

    def words(self) -> str:
        """Say in a few words which way was taken, and why not those before it."""
        refused = {name: reason for reasons in self.refused.values() for name, reason in reasons.items()}
        taken = " and ".join(dict.fromkeys(self.chosen.values())) or "nothing"
        return f"attention by {taken}" + (f" (not {listed(refused)})" if refused else "")


def listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is none to try"


def whole_rows(device: torch.device) -> Varlen | None:
    """Return attention for the packed path of a device; None on a CPU, where one call a segment is as fast as any."""
    if device.type == "cpu":
        return None
    return Varlen(WHOLE_ROW if device.type == "cuda" else {})


def untrue(way: Way, kind: Kind) -> str | None:
    """Return None if a way gives what one call a segment gives in float32, else why it is not taken."""
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
    """Return two rows of different lengths, since a compiled kernel may be true for its first alone."""
    continued: list[tuple[slice, ...]] = [(), (slice(0, 9),), (), (slice(0, 9), slice(37, 42)), ()]
    return [Cuts([150, 1, 64, 3], device=device), Cuts([37, 5, 129, 30, 17], continued, device)]


def distance(way: Way, kind: Kind, cuts: Cuts) -> float:
    """Return how far the way is from the truth at most, as a share of 1 + |value|."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((kind.heads, kind.dim), (kind.key_heads, kind.dim), (kind.key_heads, kind.value_dim))
    query, key, value = (
        torch.randn(1, heads, cuts.tokens, dim, generator=generator).to(kind.device, kind.dtype)
        for heads, dim in shapes
    )
    ask = Call(kind.dim**-0.5, 20 if kind.windowed else None, 1.0 if kind.capped else None)
    with torch.inference_mode():
        truth = by_segment(query.float(), key.float(), value.float(), cuts, ask)
        found = way(query, key, value, cuts, ask).float()
    if found.shape != truth.shape:
        raise ValueError(f"shape {tuple(found.shape)} instead of {tuple(truth.shape)}")
    return float(((found - truth).abs() / (1 + truth.abs())).nan_to_num(nan=float("inf")).max())


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
    """Attend causally within each segment, with windows, soft-capping and sinks as the model asks for them.

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
        return by_segment(query, key, value, cuts, Call(scaling, sliding_window, softcap), s_aux), None
    if s_aux is not None:
        raise ValueError("attention sinks are not known to what reads a whole row")
    return attend(query, key, value, cuts, scaling=scaling, window=sliding_window, softcap=softcap), None


def register() -> None:
    """Make `PACKED` known to transformers; without a mask function under that name no mask is built for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
