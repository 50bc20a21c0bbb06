"""Attention over a pack, many sequences in one row: each sees only itself and the prefix it continues (`Cuts`).

It is registered with transformers under `PACKED`; a model then runs its own code for everything else. Position jumps or
masks are not relied on to separate the sequences, as a missed hint would silently let them read each other: how the row
is cut is passed outside the model, per thread.

One call per segment is slow on a GPU, where records are short. Kernels that read the whole row at once come in several
builds and versions, with different causal alignments and arguments. So each is checked against attention segment by
segment in float32 before it is used, and the reason for refusing one is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tithe.engine.forward.attention_kernels import BY_SEGMENT, KERNELS, WHOLE_ROW, AttentionKernel, Call, by_segment
from tithe.engine.forward.cuts import Cuts

# Largest allowed error of a kernel, as a share of 1 + |value|, on standard normal inputs. A wrong kernel (another
# causal alignment, a segment that sees its neighbour) is off by tenths.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PACKED = "tithe_packed"


@dataclass(frozen=True)
class CallKind:
    """The properties of a call that decide which kernels are correct for it."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    dim: int
    value_dim: int
    windowed: bool
    capped: bool


class NoKernelError(RuntimeError):
    """An error that is raised if none of the kernels to try is correct."""


@dataclass
class Varlen:
    """Attention over a pack by the first correct kernel for each kind of call, checked when that kind first occurs.

    Attention sinks are not supported.

    Args:
        kernels: kernels to try, in order; None tries all on a GPU, and one call per segment elsewhere.

    Attributes:
        chosen: the kernel's name for each kind.
        refused: for each kind, why the kernels before it were not used.
    """

    kernels: Mapping[str, AttentionKernel] | None = None
    chosen: dict[CallKind, str] = field(default_factory=dict, init=False)
    refused: dict[CallKind, dict[str, str]] = field(default_factory=dict, init=False)

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
        """Attend causally within each segment and the prefix it continues: (1, tokens, heads, dim).

        A window that hides nothing in this row is dropped. The kernel that a longer row would need is chosen now all
        the same, so that a run cannot fail, or switch kernels, halfway through.

        Raises:
            ValueError: the segments do not add up to the row.
            NoKernelError: no kernel is correct.
        """
        if cuts.tokens != query.shape[2]:
            raise ValueError(f"{query.shape[2]} tokens, but segments of {cuts.tokens}")
        hides = window is not None and window < cuts.longest_key
        shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        kind = CallKind(query.device, query.dtype, *shape, hides, softcap is not None)
        if window is not None:
            self.kernel(replace(kind, windowed=not hides))
            window = window if hides else None
        ask = Call(query.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap)
        return self.candidates(kind)[self.kernel(kind)](query, key, value, cuts, ask)

    def candidates(self, kind: CallKind) -> Mapping[str, AttentionKernel]:
        """Return the kernels to try for a kind of call."""
        if self.kernels is not None:
            return self.kernels
        return KERNELS if kind.device.type == "cuda" else {BY_SEGMENT: by_segment}

    def kernel(self, kind: CallKind) -> str:
        """Return the name of the kernel for this kind of call.

        Raises:
            NoKernelError: no kernel is correct.
        """
        if kind not in self.chosen:
            reasons = self.refused.setdefault(kind, {})
            for name, kernel in self.candidates(kind).items():
                reason = why_wrong(kernel, kind)
                if reason is None:
                    self.chosen[kind] = name
                    break
                reasons[name] = reason
            else:
                raise NoKernelError(f"no attention over packs is true here ({join_reasons(reasons)})")
        return self.chosen[kind]

    def report(self) -> list[dict[str, Any]]:
        """Return the kernel for each kind of call, and why those before it were refused, for the run record."""
        return [
            {"heads": kind.heads, "key_heads": kind.key_heads, "dim": kind.dim, "windowed": kind.windowed,
             "capped": kind.capped, "taken": name, "refused": self.refused[kind]}
            for kind, name in self.chosen.items()
        ]  # fmt: skip

    def words(self) -> str:
        """Return which kernels are used, and why others were refused, for the terminal."""
        refused = {name: reason for reasons in self.refused.values() for name, reason in reasons.items()}
        taken = " and ".join(dict.fromkeys(self.chosen.values())) or "nothing"
        return f"attention by {taken}" + (f" (not {join_reasons(refused)})" if refused else "")


def join_reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is none to try"


def whole_rows(device: torch.device) -> Varlen | None:
    """Return attention for the packed path on a device; None on a CPU, where one call per segment is as fast as any."""
    if device.type == "cpu":
        return None
    return Varlen(WHOLE_ROW if device.type == "cuda" else {})


def why_wrong(kernel: AttentionKernel, kind: CallKind) -> str | None:
    """Return None if a kernel agrees with one call per segment in float32, else the reason to refuse it."""
    try:
        off = max(distance(kernel, kind, cuts) for cuts in probes(kind.device))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        return f"`{error.name}` is not installed"
    except Exception as error:  # kernels refuse dtypes, devices and shapes in their own ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None if off <= TOLERANCE[kind.dtype] else f"off by {off:.3g}"


def probes(device: torch.device) -> list[Cuts]:
    """Return two rows of different lengths, as a compiled kernel may be correct for the first shape only."""
    continued: list[tuple[slice, ...]] = [(), (slice(0, 9),), (), (slice(0, 9), slice(37, 42)), ()]
    return [Cuts([150, 1, 64, 3], device=device), Cuts([37, 5, 129, 30, 17], continued, device)]


def distance(kernel: AttentionKernel, kind: CallKind, cuts: Cuts) -> float:
    """Return the kernel's largest error as a share of 1 + |value|; infinite for NaN."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((kind.heads, kind.dim), (kind.key_heads, kind.dim), (kind.key_heads, kind.value_dim))
    query, key, value = (
        torch.randn(1, heads, cuts.tokens, dim, generator=generator).to(kind.device, kind.dtype)
        for heads, dim in shapes
    )
    ask = Call(kind.dim**-0.5, 20 if kind.windowed else None, 1.0 if kind.capped else None)
    with torch.inference_mode():
        truth = by_segment(query.float(), key.float(), value.float(), cuts, ask)  # (1, tokens, heads, value_dim)
        found = kernel(query, key, value, cuts, ask).float()
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
    """Set how this thread's attention cuts the row, within the `with` block.

    Args:
        cuts: of the row; all layers share the tensors made from them.
        attend: reads the whole row in one call; None for one call per segment.

    Yields:
        An object whose `saw_window` tells afterwards whether the model passed a sliding window.
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
        (1, tokens, heads, dim), and None for the attention weights.

    Raises:
        ValueError: the model uses something unsupported; the engine then takes another forward path.
        NoKernelError: no kernel reads the whole row correctly.
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
    """Register `PACKED` with transformers; without a mask function of that name it builds no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
