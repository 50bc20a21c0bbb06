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

from tithe.engine.measure.shape import Shape, attention_flops, idle_parameters, model_shape
from tithe.planner import Cost, Window
from tithe.records import BadRow, Example, Problem
from tithe.run.setup import Parts
from tithe.run.table import Table
from tithe.runners.local import Answers, LocalRunner
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import Engine

NOISY = 0.2  # spread of readings of the same from which something else must be going on
OTHERS = 500  # records beside the sample that scorers look at, so that they find as many anchors as they want


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
        score_seconds: of making scores and their table of what was read.
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
    score_seconds: float = 0.0


@dataclass
class TimedRunner(LocalRunner):
    """The run's own, with the seconds that scores take."""

    score_seconds: float = field(default=0.0, init=False)

    def scores(self, window: Window, i: int, answers: Answers) -> tuple[dict[str, float | Problem], dict[str, float]]:
        began = time.perf_counter()
        found = super().scores(window, i, answers)
        self.score_seconds += time.perf_counter() - began
        return found


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
        from tithe.engine.measure.memory import peak_memory
        from tithe.engine.measure.meter import metered

        with tempfile.TemporaryDirectory(dir=self.scratch) as place, one_thread(clock):
            runner, cost, table = self.runner(engine, Path(place)), Cost(), self.table()
            with peak_memory(*devices(engine)) as memory, metered(engine.model, clock=clock) as meter:
                if self.parts.learns:
                    runner.read_together([item for item in self.items if isinstance(item, Example)])
                for scored in runner.run(self.items):
                    began = time.perf_counter()
                    table.add(scored)
                    cost.add(scored.window, runner.model_readouts)
                    runner.score_seconds += time.perf_counter() - began
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
            runner.score_seconds,
        )

    @property
    def records(self) -> int:
        """Of the data set; one may hold several examples."""
        return len({item.row for item in self.items})

    def table(self) -> Table:
        """The run's own score table, still empty."""
        return Table(list(self.scorers), more=self.parts.score_columns[len(self.scorers) :])

    def runner(self, engine: Engine | None, place: Path) -> TimedRunner:
        """The run's own, with the engine that is given; without one it plans alone."""
        stores = self.parts.stores(place) if engine is not None else {}
        reads = None if engine is None else lambda: engine
        return TimedRunner(self.scorers, self.parts.renderer, reads, stores, readouts=self.parts.readouts)

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
        items = [self.items[i] for i in spread(len(self.items), count)]
        return replace(self, items=items, scorers=prepared(self.parts, items))

    def gflops(self, reading: Reading) -> float:
        """What a reading computed per second, everything included that it had to."""
        return (self.shape.flops(reading.tokens, reading.scored) + reading.attention) / reading.seconds / 1e9


def prepared(parts: Parts, items: Sequence[Example | BadRow]) -> Mapping[str, Scorer]:
    """The scorers; one that looks at other examples finds them in the sample, as far as there are enough.

    In a run a worked example is itself a record whose own pass is read, and those that show it only continue that.
    """
    if not parts.learns:
        return parts.scorers
    own = [replace(item, columns={}) for item in items if isinstance(item, Example)]
    ids = frozenset(example.id for example in own)
    others = [example for example in parts.examples if example.id not in ids]
    few = [others[i] for i in spread(len(others), OTHERS)]
    return parts.standins([*own, *few], sample=ids)


def devices(engine: Engine) -> list[torch.device]:
    """All that hold a part of the model."""
    import torch

    from tithe.engine.shard import placed

    return [torch.device(name) for name in placed(engine.model)]


def one_thread(wanted: bool) -> AbstractContextManager[None]:
    """As one of several workers has it."""
    import torch

    from tithe.engine.measure.matmul import single_threads

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
