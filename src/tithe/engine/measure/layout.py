"""Choose how many passes a CPU reads at once and how many tokens each has, by timing a few layouts.

Cores can work on one pass together or on one each, and a pack can be small enough for the cache or large enough to read
the weights seldom. The best choice depends on the machine and the model's width, so the gated MLP of one layer, which
is most of what a decoder computes, is timed in a few layouts. The usual one stays unless another is clearly faster.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch

from tithe.engine.loaded_model import LoadedModel
from tithe.engine.measure.matmul import in_turns, side_by_side

USUAL_TOKENS = 1024  # a pack's activations stay in the cache
TOKENS = (512, 2048)  # other pack sizes to try
MOST_WORKERS = 8  # each pass holds its activations in memory, and a machine may have a hundred cores
FASTER = 1.1  # required speed-up over the usual layout: less would not be worth a change of batches
ROUNDS = 5
SMALL = 2e9  # FLOPs of one layer's MLP on a usual pack: below this there is nothing to gain
LARGE = 1e10  # above this only a slice of the inner width is timed


class Layout(NamedTuple):
    """The number of passes at once, and the threads and tokens of each."""

    workers: int
    threads: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} threads, {self.tokens:,} tokens"


class GatedMlp(NamedTuple):
    """The sizes of a gated MLP: (tokens, width) -> (tokens, inner) twice -> (tokens, width)."""

    width: int
    inner: int
    dtype: torch.dtype

    def flops(self, tokens: int) -> float:
        """Count multiply-adds x 2 of its three products."""
        return 6.0 * tokens * self.width * self.inner

    @property
    def slice(self) -> GatedMlp:
        """Return an MLP of at most `LARGE` FLOPs, with a smaller inner width."""
        return self._replace(inner=min(self.inner, max(64, int(LARGE / self.flops(USUAL_TOKENS) * self.inner))))


Rate: TypeAlias = Callable[[GatedMlp, Sequence[Layout], int], Mapping[Layout, Sequence[float]]]


@dataclass(frozen=True)
class LayoutChoice:
    """The chosen layout.

    Args:
        workers: passes at once.
        threads: of each pass.
        tokens: of a pack.
        why: the reason, in words.
        tokens_per_second: of each timed layout, through one layer's MLP.
    """

    workers: int
    threads: int
    tokens: int
    why: str
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        return asdict(self)


def gated_sizes(loaded: LoadedModel) -> GatedMlp | None:
    """Return the MLP sizes from the model's config; None if it does not name them."""
    config = loaded.model.config.get_text_config()
    width, inner = getattr(config, "hidden_size", None), getattr(config, "intermediate_size", None)
    return GatedMlp(width, inner, loaded.dtype) if isinstance(width, int) and isinstance(inner, int) else None


def choose_layout(
    gated: GatedMlp | None,
    cores: int,
    *,
    workers: int | None = None,
    threads: int | None = None,
    tokens: int | None = None,
    most: int | None = None,
    rate: Rate | None = None,
) -> LayoutChoice:
    """Time layouts, for about a second in all, and return the fastest if it clearly beats the usual one.

    Args:
        gated: a layer's MLP; None if the model's sizes are unknown.
        cores: cores to divide among the passes.
        workers: number of passes, if the user gave one; it is then not measured.
        threads: threads of each of these workers; None divides the cores among them.
        tokens: tokens per pack, if the user gave a number; they are then not measured.
        most: most threads of a pass; None for all cores.
        rate: times layouts; None for `timed`.
    """
    usual = Layout(workers or min(cores, MOST_WORKERS), 1, tokens or USUAL_TOKENS)
    most = min(cores, most or cores)
    usual = usual._replace(threads=threads or share(cores, usual.workers, most))
    if workers is not None and tokens is not None:
        return LayoutChoice(*usual, "given")
    if gated is None or gated.flops(usual.tokens) < SMALL:
        return LayoutChoice(*usual, "the usual layout: a model this small has nothing to gain")
    rate, found, best = rate or timed, dict[Layout, float](), usual
    # Workers first, then the pack size for that number of workers: fewer layouts to time than all pairs.
    if workers is None and cores > 1:
        best = fastest([best, *spread_otherwise(best, cores, most)], gated.slice, rate, found)
    if tokens is None:
        best = fastest([best, *(best._replace(tokens=n) for n in TOKENS)], gated.slice, rate, found)
    why = "measured" if best == usual else f"{found[best] / found[usual]:.2f} times as fast as {usual}"
    return LayoutChoice(*best, why, {str(one): round(each) for one, each in found.items()})


def share(cores: int, workers: int, most: int) -> int:
    """Return the threads of each pass if cores are divided among the workers."""
    return max(1, min(cores // workers, most))


def spread_otherwise(usual: Layout, cores: int, most: int) -> list[Layout]:
    """Return layouts with fewer passes and more threads each, and one with half the threads."""
    counts = sorted({1, *(usual.workers // by for by in (2, 4))} - {0, usual.workers}, reverse=True)
    fewer = [Layout(count, share(cores, count, most), usual.tokens) for count in counts]
    if usual.threads > 1:
        half = usual._replace(threads=usual.threads // 2)
    else:
        half = usual._replace(workers=max(1, usual.workers // 2))
    return list(dict.fromkeys(one for one in (*fewer, half) if one != usual))


def fastest(layouts: Sequence[Layout], gated: GatedMlp, rate: Rate, found: dict[Layout, float]) -> Layout:
    """Return the first layout, unless another is faster by the margin, both in the median and in its best round."""
    rates = rate(gated, layouts, ROUNDS)
    found |= {one: statistics.median(rates[one]) for one in layouts}

    def times(one: Layout) -> float:
        """Return the speed-up over the first layout; rounds are compared pairwise, as load changes over time."""
        pairs = zip(rates[one], rates[layouts[0]], strict=True)
        return min(statistics.median(a / b for a, b in pairs), max(rates[one]) / max(rates[layouts[0]]))

    best = max(layouts, key=times)
    return best if times(best) >= FASTER else layouts[0]


def timed(gated: GatedMlp, layouts: Sequence[Layout], rounds: int) -> dict[Layout, list[float]]:
    """Return tokens per second through the MLP, by layout and round; the layouts take turns."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    shapes = ((gated.width, gated.inner), (gated.width, gated.inner), (gated.inner, gated.width))
    weights = [torch.randn(shape, generator=generator).to(gated.dtype) for shape in shapes]
    try:
        found = in_turns({layout: partial(seconds, gated, weights, layout) for layout in layouts}, rounds + 1)
    finally:
        torch.set_num_threads(before)
    # The first round is for warming up.
    return {layout: [layout.workers * layout.tokens / each for each in found[layout][1:]] for layout in layouts}


def seconds(gated: GatedMlp, weights: Sequence[torch.Tensor], layout: Layout) -> float:
    """Return the seconds from the first worker's start to the last worker's end."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(layout.threads)
        states = torch.ones(layout.tokens, gated.width, dtype=gated.dtype)
        gated_mlp(states[:64], *weights)  # starts this worker's thread pool before the clock does
        return partial(gated_mlp, states, *weights)

    return side_by_side(layout.workers, prepare)[0]


def gated_mlp(states: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Compute a decoder layer's MLP (SwiGLU): down(silu(gate) * up)."""
    return torch.mm(torch.nn.functional.silu(states @ gate).mul_(states @ up), down)
