"""A sample of a run, read as the run reads it, with its seconds, its work and its memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.engine.measure.shape import ModelShape, attention_flops, idle_parameters, model_shape
from tithe.planner import Cost, Window
from tithe.records import BadRow, Example, Problem
from tithe.run.method import Setup
from tithe.run.table import Table
from tithe.runners.local import Answers, LocalRunner
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import Engine

OTHERS = 500  # records beside the sample that scorers look at, so that they find as many anchors as they want


@dataclass(frozen=True)
class Reading:
    """A sample, read once.

    Args:
        seconds: of reading, without loading the model, planning and scoring.
        tokens: that the model read; a beginning that several passes share counts once.
        planned: tokens of all passes, as a plan counts them.
        flops: that it took, padding left out.
        through: tokens that went through the layers, padding and fillers included.
        peak_bytes: memory.
        halved: how often memory ran out.
        score_seconds: of making scores and their table of what was read.
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
        setup: of the whole run.
        scorers: prepared with made-up answers.
        items: the records.
        scratch: a folder for run folders that nobody keeps.
        shape: of the model, without the experts that a token is not sent to.
        engine: as a run has it.
    """

    setup: Setup
    scorers: Mapping[str, Scorer]
    items: Sequence[Example | BadRow]
    scratch: Path
    shape: ModelShape
    engine: Engine

    def read(self) -> Reading:
        """Read the sample in a new run folder, through the run's own runner, by a new engine with the model loaded."""
        from tithe.engine.engine import Engine
        from tithe.engine.measure.machine import metered
        from tithe.engine.measure.memory import peak_memory

        usual = self.engine
        engine = Engine(usual.model, usual.budget, usual.workers, threads=usual.threads)
        with tempfile.TemporaryDirectory(dir=self.scratch) as place:
            runner, cost, table = self.runner(engine, Path(place)), Cost(), self.table()
            with peak_memory(*devices(engine)) as memory, metered(engine.model) as meter:
                if self.setup.method.learns:
                    runner.read_together([item for item in self.items if isinstance(item, Example)])
                for scored in runner.run(self.items):
                    began = time.perf_counter()
                    table.add(scored)
                    cost.add(scored.window, runner.model_readouts)
                    runner.score_seconds += time.perf_counter() - began
        work, config = runner.work, engine.model.model.config.to_dict()
        return Reading(
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
        """Of the data set; one may hold several examples."""
        return len({item.row for item in self.items})

    def table(self) -> Table:
        """Return the run's own score table, still empty."""
        return Table(list(self.scorers), more=self.setup.method.score_columns[len(self.scorers) :])

    def runner(self, engine: Engine | None, place: Path) -> TimedRunner:
        """Return the run's own runner with an engine; without one it only plans."""
        stores = self.setup.stores(place, lambda _: None) if engine is not None else {}
        reads = None if engine is None else lambda: engine
        return TimedRunner(self.scorers, self.setup.renderer, reads, stores, readouts=self.setup.readouts)

    def tokenise(self) -> tuple[float, int]:
        """Return the seconds of planning the sample, and the tokens that come of it."""
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
        return replace(self, items=items, scorers=prepared(self.setup, items))


def prepared(setup: Setup, items: Sequence[Example | BadRow]) -> Mapping[str, Scorer]:
    """Return the scorers; one that looks at other examples finds them in the sample, as far as there are enough.

    In a run a worked example is itself a record whose own pass is read, and those that show it only continue that.
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
    """Return `count` places of `total`, evenly: the middles of equal parts."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def working_shape(engine: Engine) -> ModelShape:
    """Return the model's sizes, without experts that a token is not sent to."""
    model = engine.model
    shape = model_shape(model.source)
    weights = ((name, one.numel()) for name, one in model.model.named_parameters())
    idle = idle_parameters(model.model.config.to_dict(), weights)
    return replace(shape, parameters=shape.parameters - idle)
