"""A sample of a run, read as the run would read it, with its seconds, its work and its memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.engine.shape import Shape, model_shape
from tithe.engine.work import attention_flops, idle_parameters
from tithe.planner import Cost
from tithe.records import BadRow, Example
from tithe.run.setup import Parts
from tithe.runners.local import LocalRunner
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    from tithe.engine.engine import Engine

NOISY = 0.2  # spread of readings of the same from which something else must be going on


@dataclass(frozen=True)
class Reading:
    """A sample, read once.

    Args:
        seconds: of reading, without loading the model, planning and scoring.
        tokens: that the model read; a beginning that several passes share counts once.
        planned: tokens of all passes, as a plan counts them.
        scored: response tokens that went through the output head.
        through: tokens that went through the layers, padding and fillers included.
        attention: FLOPs of attention's own products.
        peak_bytes: memory.
        batches: forward passes.
        halved: how often memory ran out.
        backbone_seconds: of the layers; 0 where no clock ran.
        head_seconds: from hidden states to likelihoods; 0 where no clock ran.
    """

    seconds: float
    tokens: int
    planned: int
    scored: int
    through: int
    attention: float
    peak_bytes: int
    halved: int
    backbone_seconds: float = 0.0
    head_seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """What is read, again and again.

    Args:
        parts: of the whole run.
        scorers: prepared with made-up answers.
        items: the records.
        scratch: a folder for run folders that nobody keeps.
        shape: of the model, without the experts that a token is not sent to.
    """

    parts: Parts
    scorers: Mapping[str, Scorer]
    items: Sequence[Example | BadRow]
    scratch: Path
    shape: Shape

    def read(self, engine: Engine, *, clock: bool = False) -> Reading:
        """Read it in a new run folder, by way of the run's own runner.

        Args:
            engine: reads.
            clock: also time the layers and the head, one pass of one thread after the other.
        """
        from tithe.engine.meter import metered
        from tithe.engine.peak_memory import peak_memory

        device = engine.model.device
        with tempfile.TemporaryDirectory(dir=self.scratch) as place, one_thread(clock):
            runner, cost = self.runner(engine, Path(place)), Cost()
            with peak_memory(device) as memory, metered(engine.model, clock=clock) as meter:
                for scored in runner.run(self.items):
                    cost.add(scored.window, runner.model_readouts)
        work = runner.work
        return Reading(
            work.seconds,
            work.tokens,
            cost.tokens,
            cost.scored,
            meter.tokens,
            attention_flops(engine.model.model.config.to_dict(), meter.keys),
            memory.bytes or 0,
            engine.halved,
            meter.backbone_seconds,
            meter.head_seconds,
        )

    def runner(self, engine: Engine | None, place: Path) -> LocalRunner:
        """The run's own, with the engine that is given; without one it plans alone."""
        stores = self.parts.stores(place) if engine is not None else {}
        reads = None if engine is None else lambda: engine
        return LocalRunner(self.scorers, self.parts.renderer, reads, stores, readouts=self.parts.readouts)

    def tokenise(self) -> tuple[float, int]:
        """Seconds of planning the sample, and the tokens that come of it."""
        runner, cost = self.runner(None, self.scratch), Cost()
        began = time.perf_counter()
        window = runner.plan(self.items)
        seconds = time.perf_counter() - began
        cost.add(window, runner.model_readouts)
        return seconds, cost.tokens

    def part(self, share: float) -> Sample:
        """A smaller one, spread evenly over this."""
        count = max(1, min(len(self.items), round(len(self.items) * share)))
        return replace(self, items=[self.items[i] for i in spread(len(self.items), count)])

    def gflops(self, reading: Reading) -> float:
        """What a reading computed per second, everything included that it had to."""
        return (self.shape.flops(reading.tokens, reading.scored) + reading.attention) / reading.seconds / 1e9


def one_thread(wanted: bool) -> AbstractContextManager[None]:
    """As one of several workers has it."""
    import torch

    from tithe.engine.matmul import single_threads

    return single_threads(torch.device("cpu")) if wanted else nullcontext()


def spread(total: int, count: int) -> list[int]:
    """So many places of `total`, evenly: the middles of equal parts."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def working_shape(engine: Engine) -> Shape:
    """The model's sizes as far as each token meets them."""
    model = engine.model
    shape = model_shape(model.source)
    weights = ((name, one.numel()) for name, one in model.model.named_parameters())
    idle = idle_parameters(model.model.config.to_dict(), weights)
    return replace(shape, parameters=shape.parameters - idle)


@dataclass
class Choice:
    """A budget and a number of workers, and what came of them.

    Args:
        budget: tokens a batch holds.
        workers: passes under way at once.
        readings: of the same sample.
    """

    budget: int
    workers: int
    readings: list[Reading] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each reading."""
        return [one.tokens / one.seconds for one in self.readings]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """(most - least) / median."""
        return (max(self.rates) - min(self.rates)) / self.rate

    @property
    def middle(self) -> Reading:
        """The reading of median seconds."""
        return sorted(self.readings, key=lambda one: one.seconds)[len(self.readings) // 2]

    def as_dict(self, sample: Sample, peak: float) -> dict[str, Any]:
        """For the record; `peak` in GFLOP/s."""
        gflops = sample.gflops(self.middle)
        return {
            "batch_tokens": self.budget,
            "workers": self.workers,
            "tokens_per_second": [round(rate, 1) for rate in self.rates],
            "tokens_per_second_median": round(self.rate, 1),
            "spread": round(self.spread, 3),
            "gflops": round(gflops, 3),
            "utilisation": round(gflops / peak, 4),
            "peak_bytes": max(one.peak_bytes for one in self.readings),
            "batches_halved": max(one.halved for one in self.readings),
        }
