"""Read a sample of a run as the run would, and measure seconds, FLOPs and memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.engine.measure.shape import ModelShape, attention_flops, idle_parameters, model_shape
from tithe.planner import Cost, Window
from tithe.records import BadRow, Example
from tithe.run.method import Setup
from tithe.run.table import ScoreTable
from tithe.runners.local import Answers, LocalRunner, MoreByName, ScoresByName
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import Engine

LEARNT = frozenset({"parts", "probes", "weighted"})  # readouts of `rds` and `sound`
OTHERS = 500  # records besides the sample, so that scorers find enough examples to compare with


@dataclass(frozen=True)
class TimedReading:
    """One reading of a sample.

    Args:
        seconds: of reading, without loading the model, planning and scoring.
        tokens: that the model read; a prefix shared by several passes counts once.
        planned: tokens of all passes, as a plan counts them.
        flops: of the reading, without padding.
        through: tokens that went through the layers, including padding and fillers.
        peak_bytes: most memory in use.
        halved: how often a batch was halved because memory ran out.
        score_seconds: of computing scores and their table.
    """

    seconds: float
    tokens: int
    planned: int
    flops: float
    through: int
    peak_bytes: int
    halved: int
    score_seconds: float = 0.0


@dataclass
class TimedRunner(LocalRunner):
    """The run's own runner; also measures the seconds of scoring."""

    score_seconds: float = field(default=0.0, init=False)

    def scores(self, window: Window, i: int, answers: Answers) -> tuple[ScoresByName, MoreByName]:
        began = time.perf_counter()
        found = super().scores(window, i, answers)
        self.score_seconds += time.perf_counter() - began
        return found


@dataclass(frozen=True)
class Sample:
    """A sample that is read repeatedly.

    Args:
        setup: of the whole run.
        scorers: prepared with stubs instead of answers.
        items: the records.
        scratch: folder for temporary run folders.
        shape: of the model, without the experts that a token is not routed to.
        engine: the one that the run would use.
    """

    setup: Setup
    scorers: Mapping[str, Scorer]
    items: Sequence[Example | BadRow]
    scratch: Path
    shape: ModelShape
    engine: Engine

    def read(self) -> TimedReading:
        """Read the sample once, in a new run folder so that no answer is reused; the model stays loaded."""
        from tithe.engine.engine import Engine
        from tithe.engine.measure.machine import metered
        from tithe.engine.measure.memory import peak_memory

        usual = self.engine
        engine = Engine(usual.model, usual.budget, usual.workers, threads=usual.threads)
        with tempfile.TemporaryDirectory(dir=self.scratch) as place:
            runner, cost, table = self.runner(engine, Path(place)), Cost(), self.table()
            # A new engine counts halved batches from 0; the meter counts what goes through the layers.
            with peak_memory(*devices(engine)) as memory, metered(engine.model) as meter:
                if self.setup.method.learns:
                    runner.read_together([item for item in self.items if isinstance(item, Example)])
                for scored in runner.run(self.items):
                    began = time.perf_counter()
                    table.add(scored)
                    cost.add(scored.window, runner.model_readouts)
                    runner.score_seconds += time.perf_counter() - began
        work, config = runner.work, engine.model.model.config.to_dict()
        return TimedReading(
            seconds=work.seconds,
            tokens=work.tokens,
            planned=cost.tokens,
            flops=self.shape.flops(work.tokens, cost.scored) + attention_flops(config, meter.keys),
            through=meter.tokens,
            peak_bytes=memory.bytes or 0,
            halved=engine.halved,
            score_seconds=runner.score_seconds,
        )

    @property
    def records(self) -> int:
        """Number of records; one may hold several examples."""
        return len({item.row for item in self.items})

    def table(self) -> ScoreTable:
        """Return the run's score table, still empty."""
        return ScoreTable(list(self.scorers), more=self.setup.method.score_columns[len(self.scorers) :])

    def runner(self, engine: Engine | None, place: Path) -> TimedRunner:
        """Return the run's runner; without an engine it only plans."""
        stores = self.setup.stores(place, lambda _: None) if engine is not None else {}
        reads = None if engine is None else lambda: engine
        return TimedRunner(self.scorers, self.setup.renderer, reads, stores, readouts=self.setup.readouts)

    def tokenise(self) -> tuple[float, int]:
        """Return the seconds of planning the sample, and its tokens."""
        runner, cost = self.runner(None, self.scratch), Cost()
        began = time.perf_counter()
        window = runner.plan(self.items)
        seconds = time.perf_counter() - began
        cost.add(window, runner.model_readouts)
        return seconds, cost.tokens

    def part(self, share: float) -> Sample:
        """Return a smaller sample, spread evenly over this one."""
        count = max(1, min(len(self.items), round(len(self.items) * share)))
        items = [self.items[i] for i in spread(len(self.items), count)]
        return replace(self, items=items, scorers=prepare_scorers(self.setup, items))


def compared_states(setup: Setup) -> str | None:
    """Return the scorers' readouts of states that are compared with what the run learns first, or None.

    A sample teaches nothing: the made-up vectors of its scorers do not fit a model's states.
    """
    found = sorted(LEARNT & {*setup.asked})
    return ", ".join(f"`{name}`" for name in found) or None


def prepare_scorers(setup: Setup, items: Sequence[Example | BadRow]) -> Mapping[str, Scorer]:
    """Return scorers for the sample; those that compare with other examples find them in it if it has enough.

    In a run, a worked example is itself a record, and passes that begin with it reuse what was read of it.
    """
    if not setup.method.learns:
        return setup.method.scorers
    own = [replace(item, columns={}) for item in items if isinstance(item, Example)]
    ids = frozenset(example.id for example in own)
    others = [example for example in setup.source.examples if example.id not in ids]
    few = [others[i] for i in spread(len(others), OTHERS)]
    return setup.method.stubs([*own, *few], setup.pools, sample=ids)


def devices(engine: Engine) -> list[torch.device]:
    """Return all devices that hold a part of the model."""
    import torch

    from tithe.engine.loading import holding_devices

    return [torch.device(name) for name in holding_devices(engine.model)]


def spread(total: int, count: int) -> list[int]:
    """Return `count` places spread evenly over `total`: the middles of equal parts."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def working_shape(engine: Engine) -> ModelShape:
    """Return the model's shape, without experts that a token is not routed to."""
    model = engine.model
    shape = model_shape(model.source)
    weights = ((name, one.numel()) for name, one in model.model.named_parameters())
    idle = idle_parameters(model.model.config.to_dict(), weights)
    return replace(shape, parameters=shape.parameters - idle)
