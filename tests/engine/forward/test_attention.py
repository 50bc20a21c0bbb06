"""Attention over a pack in one call, against a twin that computes one query at a time."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from tithe.engine.forward.attention import CallKind, Varlen
from tithe.engine.forward.attention_kernels import BY_SEGMENT, KERNELS, Call, by_flash, by_flex, by_segment, by_torch
from tithe.engine.forward.cuts import BLOCK, Cuts

CPU = torch.device("cpu")
HEADS, KEY_HEADS, DIM = 6, 2, 8
PLAIN = ([3, 1, 7, 150, 2], [])
CONTINUED = ([9, 5, 1, 140, 4], [(), (slice(0, 4),), (), (slice(0, 4), slice(9, 12)), (slice(14, 15),)])
ASKS = [
    Call(0.3),
    Call(DIM**-0.5, window=4),
    Call(0.5, softcap=1.5),
    Call(0.4, window=1, softcap=0.7),
]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def draw(tokens: int, heads: int = HEADS, key_heads: int = KEY_HEADS, dim: int = DIM) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(1, n, tokens, dim, generator=generator) for n in (heads, key_heads, key_heads))


def visible(lengths: list[int], before: list[tuple[slice, ...]], window: int | None) -> list[list[int]]:
    """Return, for each token of the row, the tokens that it sees."""
    out, start = [], 0
    for i, length in enumerate(lengths):
        earlier = [at for part in (before[i] if before else ()) for at in range(part.start, part.stop)]
        for j in range(length):
            seen = [*earlier, *range(start, start + j + 1)]
            out.append(seen if window is None else seen[-window:])
        start += length
    return out


def weigh(query: np.ndarray, keys: np.ndarray, values: np.ndarray, scaling: float, softcap: float | None) -> np.ndarray:
    """Attend with one query of one head: softmax(scores) of the values."""
    scores = keys @ query * scaling
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values


def twin(tensors: tuple[torch.Tensor, ...], seen: list[list[int]], ask: Call) -> np.ndarray:
    query, key, value = (x[0].double().numpy() for x in tensors)
    each = query.shape[0] // key.shape[0]
    return np.array(
        [
            [weigh(query[h, t], key[h // each, at], value[h // each, at], ask.scaling, ask.softcap)
             for h in range(query.shape[0])]
            for t, at in enumerate(seen)
        ]
    )  # fmt: skip


def of_documents(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends_q: torch.Tensor, ends_k: torch.Tensor,
    scaling: float, left: int, softcap: float | None = None, shift: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Attend as the kernels' documentation says: causal, queries aligned with the last keys; `shift` moves that."""
    q, k, v = (x.double().numpy() for x in (query, key, value))
    each = q.shape[1] // k.shape[1]
    out = np.zeros((*q.shape[:2], v.shape[2]))
    for i in range(len(ends_q) - 1):
        first, last, start, stop = (int(x) for x in (*ends_q[i : i + 2], *ends_k[i : i + 2]))
        for t in range(first, last):
            top = min(stop - (last - t) + 1 + shift, stop)
            low = start if left < 0 else max(start, top - 1 - left)
            for h in range(q.shape[1]):
                out[t, h] = weigh(q[t, h], k[low:top, h // each], v[low:top, h // each], scaling, softcap)
    return torch.from_numpy(out).to(query.dtype)


@pytest.mark.parametrize("ask", ASKS, ids=str)
@pytest.mark.parametrize("way", [by_segment, by_flex])
@pytest.mark.parametrize(("lengths", "before"), [PLAIN, CONTINUED], ids=["plain", "continued"])
def test_a_way_equals_the_twin(way: Any, lengths: list[int], before: list[Any], ask: Call) -> None:
    tensors = draw(sum(lengths))
    found = way(*tensors, Cuts(lengths, before), ask)
    assert found.shape == (1, sum(lengths), HEADS, DIM)
    wanted = twin(tensors, visible(lengths, before, ask.window), ask)
    assert np.abs(found[0].numpy() - wanted).max() < 2e-6


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_that_of_the_segments(seed: int, window: int | None) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(1, 120, 9)]
    before: list[tuple[slice, ...]] = [(), (slice(0, 1),), *[()] * 5, (slice(0, lengths[0]),), ()]
    cuts = Cuts(lengths, before)
    gathered = np.concatenate(
        [[*(at for part in before[i] for at in range(part.start, part.stop)), *range(start, start + length)]
         for i, (start, length) in enumerate(zip(np.cumsum(lengths) - lengths, lengths, strict=True))]
    )  # fmt: skip
    assert cuts.keys is not None and cuts.keys.tolist() == gathered.tolist()
    query, key = torch.arange(cuts.tokens)[:, None], torch.arange(len(gathered))[None]
    mask = cuts.mask_mod(window)(0, 0, query, key).numpy()
    seen = visible(lengths, before, window)
    assert [sorted(gathered[row]) for row in mask] == [sorted(at) for at in seen]
    tiles = cuts.block_mask(window).to_dense()[0, 0].numpy()
    padded = np.pad(mask, [(0, -n % BLOCK) for n in mask.shape])
    needed = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).any(axis=(1, 3))
    assert tiles.shape == needed.shape and (tiles >= needed).all() and tiles.mean() < 1
    assert cuts.block_mask(window) is cuts.block_mask(window)


@pytest.mark.parametrize(("lengths", "before"), [PLAIN, CONTINUED], ids=["plain", "continued"])
def test_pairs_are_what_is_seen(lengths: list[int], before: list[Any]) -> None:
    assert Cuts(lengths, before).pairs == sum(map(len, visible(lengths, before, None)))


def test_lengths_for_kernels() -> None:
    cuts = Cuts(*CONTINUED)
    assert cuts.query_ends.tolist() == [0, 9, 14, 15, 155, 159] and cuts.query_ends.dtype == torch.int32
    assert cuts.key_ends.tolist() == [0, 9, 18, 19, 166, 171]
    assert (cuts.longest_query, cuts.longest_key) == (140, 147)
    plain = Cuts(*PLAIN)
    assert plain.keys is None and plain.key_ends is plain.query_ends


def test_layers_elsewhere_share_a_copy() -> None:
    cuts, elsewhere = Cuts(*CONTINUED), torch.device("meta")
    assert cuts.on(CPU) is cuts
    assert cuts.on(elsewhere) is cuts.on(elsewhere) and cuts.on(elsewhere).query_ends.device == elsewhere
    assert (cuts.on(elsewhere).lengths, cuts.on(elsewhere).before) == CONTINUED


def varlen_of_2_10(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, max_q: int, max_k: int, is_causal=False,
                   return_aux=None):  # fmt: skip
    assert is_causal and q.shape[1] == k.shape[1]
    return of_documents(q, k, v, ends_q, ends_k, q.shape[2] ** -0.5, -1)


def varlen_of_2_11(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, max_q: int, max_k: int, *, return_aux=None,
                   scale=None, window_size=(-1, -1)):  # fmt: skip
    assert window_size[1] == 0 and max_q == ends_q.diff().max() and max_k == ends_k.diff().max()
    return of_documents(q, k, v, ends_q, ends_k, scale, window_size[0])


def varlen_of_2_12(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, max_q: int, max_k: int, *, return_aux=None,
                   scale=None, window_size=(-1, -1), enable_gqa=False):  # fmt: skip
    assert enable_gqa or q.shape[1] == k.shape[1]
    return varlen_of_2_11(q, k, v, ends_q, ends_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.fixture
def torch_varlen(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(function: Any) -> None:
        module = types.ModuleType("torch.nn.attention.varlen")
        module.varlen_attn = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("ask", ASKS[:2], ids=str)
@pytest.mark.parametrize("version", [varlen_of_2_11, varlen_of_2_12])
def test_the_call_of_torch(torch_varlen: Any, version: Any, ask: Call, grouped: bool) -> None:
    torch_varlen(version)
    lengths, before = CONTINUED
    tensors = draw(sum(lengths))
    found = by_torch(*tensors, Cuts(lengths, before), ask, grouped=grouped)
    wanted = twin(tensors, visible(lengths, before, ask.window), ask)
    assert np.abs(found[0].numpy() - wanted).max() < 2e-6


def test_the_call_of_an_older_torch(torch_varlen: Any) -> None:
    torch_varlen(varlen_of_2_10)
    lengths, before = CONTINUED
    tensors, cuts, ask = draw(sum(lengths)), Cuts(lengths, before), Call(DIM**-0.5)
    found = by_torch(*tensors, cuts, ask, grouped=False)
    assert np.abs(found[0].numpy() - twin(tensors, visible(lengths, before, None), ask)).max() < 2e-6
    for refused in (Call(0.3), Call(DIM**-0.5, window=3), Call(DIM**-0.5, softcap=1.0)):
        with pytest.raises(NotImplementedError, match="it takes no"):
            by_torch(*tensors, cuts, refused, grouped=False)


def flash(shift: int = 0) -> types.ModuleType:
    """Stub the package as documented; with a shift, a version with another alignment."""

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
                               max_seqlen_k: int, dropout_p=0.0, softmax_scale=None, causal=False,
                               window_size=(-1, -1), softcap=0.0):  # fmt: skip
        assert causal and window_size[1] in (-1, 0) and dropout_p == 0
        return of_documents(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size[0], softcap or None, shift)

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("ask", ASKS, ids=str)
def test_the_call_of_flash_attn(monkeypatch: pytest.MonkeyPatch, ask: Call) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash())
    lengths, before = CONTINUED
    tensors = draw(sum(lengths))
    found = by_flash(*tensors, Cuts(lengths, before), ask)
    assert np.abs(found[0].numpy() - twin(tensors, visible(lengths, before, ask.window), ask)).max() < 2e-6


def kind(**changed: Any) -> CallKind:
    values = {"device": CPU, "dtype": torch.float32, "heads": HEADS, "key_heads": KEY_HEADS, "dim": DIM}
    return CallKind(**{**values, "value_dim": DIM, "windowed": False, "capped": False, **changed})


def test_the_first_true_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash())
    chosen = Varlen(KERNELS)
    assert chosen.kernel(kind()) == "flash-attn" and chosen.refused[kind()] == {}


@pytest.mark.parametrize("shift", [-1, 1])
def test_another_alignment_is_not_taken(monkeypatch: pytest.MonkeyPatch, torch_varlen: Any, shift: int) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash(shift))
    torch_varlen(varlen_of_2_12)
    chosen = Varlen(KERNELS)
    assert chosen.kernel(kind()) == "torch varlen_attn"
    assert chosen.refused[kind()].keys() == {"flash-attn"}
    assert chosen.refused[kind()]["flash-attn"].startswith(("off by", "ValueError"))  # of a query that sees nothing


def test_why_a_way_is_not_taken(monkeypatch: pytest.MonkeyPatch, torch_varlen: Any) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    torch_varlen(varlen_of_2_11)
    chosen = Varlen({**KERNELS, "FlexAttention": lambda query, *_: query.transpose(1, 2) * math.nan})
    assert chosen.kernel(kind(capped=True)) == BY_SEGMENT
    assert chosen.refused[kind(capped=True)] == {
        "flash-attn": "`flash_attn` is not installed",
        "torch varlen_attn": "NotImplementedError: it takes no soft cap",
        "torch varlen_attn, heads repeated": "NotImplementedError: it takes no soft cap",
        "FlexAttention": "off by inf",
    }
    with pytest.raises(RuntimeError, match="no attention over packs is true here"):
        Varlen({"nothing": lambda *_: torch.zeros(1)}).kernel(kind())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_gpu_segments_are_read_one_by_one(dtype: torch.dtype) -> None:
    lengths, before = CONTINUED
    tensors, attend = tuple(x.to(dtype) for x in draw(sum(lengths))), Varlen()
    found = attend(*tensors, Cuts(lengths, before), window=4)
    wanted = twin(tensors, visible(lengths, before, 4), Call(DIM**-0.5))
    assert found.dtype == dtype
    assert np.abs(found[0].float().numpy() - wanted).max() < (2e-6 if dtype == torch.float32 else 3e-2)
    assert list(attend.chosen.values()) == [BY_SEGMENT] * 2
    # What another row needs, where the window hides nothing or something, is found at once.
    assert {one.windowed for one in attend.chosen} == {True, False}
    found = attend(*tensors, Cuts(lengths, before), window=147)  # the longest
    assert (
        np.abs(found[0].float().numpy() - twin(tensors, visible(lengths, before, None), Call(DIM**-0.5))).max() < 3e-2
    )
    with pytest.raises(ValueError, match="159 tokens, but segments of 158"):
        attend(*tensors, Cuts([158]))
