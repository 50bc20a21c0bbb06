"""How many passes are read at once on a CPU, and of how many tokens: the fastest of a few layouts, measured.

Cores can work on one pass together or each on its own, and a pack can be small enough for the cache or large enough to
read the weights seldom. What is best depends on the machine and on the model's width, so a layer's gated product, which
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
TOKENS = (512, 2048)  # what else is tried
MOST_WORKERS = 8  # every pass under way holds its activations, and a machine may have a hundred cores
FASTER = 1.1  # times the usual layout: less would not be worth other batches
ROUNDS = 5
SMALL = 2e9  # FLOPs of a layer's product on a usual pack below which there is nothing to gain
LARGE = 1e10  # above which only a slice of the inner width is timed


class Layout(NamedTuple):
    """Passes at once, threads of each, and tokens of each."""

    workers: int
    threads: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} threads, {self.tokens:,} tokens"


class Gated(NamedTuple):
    """What is timed: (tokens, width) -> (tokens, inner) twice -> (tokens, width)."""

    width: int
    inner: int
    dtype: torch.dtype

    def flops(self, tokens: int) -> float:
        return 6.0 * tokens * self.width * self.inner

    @property
    def slice(self) -> Gated:
        """Return no more than `LARGE` of it."""
        return self._replace(inner=min(self.inner, max(64, int(LARGE / self.flops(USUAL_TOKENS) * self.inner))))


Rate: TypeAlias = Callable[[Gated, Sequence[Layout], int], Mapping[Layout, Sequence[float]]]


@dataclass(frozen=True)
class LayoutChoice:
    """The layout that was taken.

    Args:
        workers: passes at once.
        threads: of each.
        tokens: of a pack.
        why: in words.
        tokens_per_second: of each layout that was timed, through one layer's product.
    """

    workers: int
    threads: int
    tokens: int
    why: str
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the run record."""
        return asdict(self)


def gated_product(loaded: LoadedModel) -> Gated | None:
    """Return a layer's product by the model's config; None where that does not name its sizes."""
    config = loaded.model.config.get_text_config()
    width, inner = getattr(config, "hidden_size", None), getattr(config, "intermediate_size", None)
    return Gated(width, inner, loaded.dtype) if isinstance(width, int) and isinstance(inner, int) else None


def choose_layout(
    gated: Gated | None,
    cores: int,
    *,
    workers: int | None = None,
    threads: int | None = None,
    tokens: int | None = None,
    most: int | None = None,
    rate: Rate | None = None,
) -> LayoutChoice:
    """Time layouts, about a second in all, and take the fastest that is clearly faster than the usual one.

    Args:
        gated: a layer's product; None where the model's sizes are not known.
        cores: to share out.
        workers: as asked for; then they are not measured.
        threads: of each of these workers; None shares out the cores.
        tokens: as asked for; likewise.
        most: threads that a pass may have; None for all cores.
        rate: how layouts are timed; `timed` if left out.
    """
    usual = Layout(workers or min(cores, MOST_WORKERS), 1, tokens or USUAL_TOKENS)
    most = min(cores, most or cores)
    usual = usual._replace(threads=threads or share(cores, usual.workers, most))
    if workers is not None and tokens is not None:
        return LayoutChoice(*usual, "given")
    if gated is None or gated.flops(usual.tokens) < SMALL:
        return LayoutChoice(*usual, "the usual layout: a model this small has nothing to gain")
    rate, found, best = rate or timed, dict[Layout, float](), usual
    if workers is None and cores > 1:
        best = fastest([best, *spread_otherwise(best, cores, most)], gated.slice, rate, found)
    if tokens is None:
        best = fastest([best, *(best._replace(tokens=n) for n in TOKENS)], gated.slice, rate, found)
    why = "measured" if best == usual else f"{found[best] / found[usual]:.2f} times as fast as {usual}"
    return LayoutChoice(*best, why, {str(one): round(each) for one, each in found.items()})


def share(cores: int, workers: int, most: int) -> int:
    """Share the cores out: threads of each of so many passes."""
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


def fastest(layouts: Sequence[Layout], gated: Gated, rate: Rate, found: dict[Layout, float]) -> Layout:
    """Return the first layout, or one that is faster by the margin, both in the median and at its best."""
    rates = rate(gated, layouts, ROUNDS)
    found |= {one: statistics.median(rates[one]) for one in layouts}

    def times(one: Layout) -> float:
        pairs = zip(rates[one], rates[layouts[0]], strict=True)
        return min(statistics.median(a / b for a, b in pairs), max(rates[one]) / max(rates[layouts[0]]))

    best = max(layouts, key=times)
    return best if times(best) >= FASTER else layouts[0]


def timed(gated: Gated, layouts: Sequence[Layout], rounds: int) -> dict[Layout, list[float]]:
    """Return tokens per second through the product, by layout; all layouts take turns."""
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


def seconds(gated: Gated, weights: Sequence[torch.Tensor], layout: Layout) -> float:
    """Return the seconds from the first worker's start to the last one's end."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(layout.threads)
        states = torch.ones(layout.tokens, gated.width, dtype=gated.dtype)
        product(states[:64], *weights)  # starts this thread's own threads
        return partial(product, states, *weights)

    return side_by_side(layout.workers, prepare)[0]


def product(states: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Compute a decoder layer's product: down(silu(gate) * up)."""
    return torch.mm(torch.nn.functional.silu(states @ gate).mul_(states @ up), down)
