"""How fast a run would be here, what limits it, and with which options it would be faster: all of it measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.errors import DataError, ModelError, SettingsError
from tithe.lab.speed.reading import Choice, Sample, prepared, spread, working_shape
from tithe.lab.speed.result import BenchResult, Limits, conclude
from tithe.lab.speed.settings import BenchSettings
from tithe.records import BadRow, Example
from tithe.run.describe import engine_record, versions
from tithe.run.score import plan
from tithe.run.setup import Parts
from tithe.run.talk import Talk

if TYPE_CHECKING:
    from tithe.engine.engine import Engine
    from tithe.engine.measure.machine import Machine

BUDGETS = {"cpu": (512, 1024, 2048), "cuda": (8192, 16_384, 32_768), "mps": (8192, 16_384, 32_768)}
FIRST = 8  # records read before anything is timed: kernels are compiled, and the sample's time is told


def bench(settings: BenchSettings, talk: Talk | None = None) -> BenchResult:
    """Count the whole data set, load the model, and read a sample of it in several ways.

    Raises:
        SettingsError: no scorer reads a model, or what else would stop the run.
        DataError: the data set holds no example that could be read.
    """
    talk = talk or Talk()
    parts = Parts(settings.job, talk=talk, several=False)
    check(parts)
    job, grown = counted(settings, talk)
    with tempfile.TemporaryDirectory(prefix="tithe-bench-") as scratch:
        items = sampled(parts, job["counts"]["records"], settings.limit)
        usual, loading = loaded(parts, Path(scratch))
        sample = Sample(parts, prepared(parts, items), items, Path(scratch), working_shape(usual))
        talk.say("measuring: matrix products of this machine")
        machine = measured_machine(usual, parts)
        sample, warming = affordable(sample, usual, settings)
        talk.say(f"measuring: {len(sample.items):,} records, read {settings.repeats} times in each way")
        choices = try_all(sample, usual, settings)
        limits = find_limits(sample, usual, machine, settings.repeats, loading + warming)
    record = describe(parts, job, machine, usual) | {"planning_bytes": grown}
    return conclude(record, sample, choices, limits, machine, notes(parts, settings, job))


def check(parts: Parts) -> None:
    """Raise what can be known to be wrong before anything is counted."""
    if parts.settings.dtype == "fp8":
        raise SettingsError(
            "a bench holds a model against the matmul peak of its dtype, and knows none of `fp8`", hint="`--dtype bf16`"
        )
    parts.check(None)
    if not parts.needs_model:
        raise SettingsError(
            f"{', '.join(parts.scorers)} reads no model: there is nothing to measure",
            hint="`--scorer ifd` reads one",
        )
    if parts.settings.warmup:
        raise SettingsError("`warmup` trains the model before it scores, and a bench trains none", hint="leave it out")


def counted(settings: BenchSettings, talk: Talk) -> tuple[dict[str, Any], int]:
    """The plan of the whole job, and the bytes by which the process grew meanwhile."""
    import torch

    from tithe.engine.measure.memory import held, peak_memory

    cpu = torch.device("cpu")
    before = held(cpu)
    with peak_memory(cpu) as memory:
        job = plan(settings.job, talk).record
    return job, max(0, (memory.bytes or 0) - before)


def sampled(parts: Parts, records: int, limit: int) -> list[Example | BadRow]:
    """Records spread evenly over the data set; all where there are no more."""
    wanted = set(spread(records, limit))
    found = [item for item in parts.dataset if item.row in wanted]
    if not any(isinstance(item, Example) for item in found):
        raise DataError(
            f"of {len(wanted):,} records of `{parts.settings.dataset}` none can be read", hint="a larger `--limit`"
        )
    return found


def loaded(parts: Parts, place: Path) -> tuple[Engine, float]:
    """The engine, and the seconds that it took to make; the weights' fingerprint is part of it."""
    began = time.perf_counter()
    parts.stores(place)
    engine = parts.engine
    return engine, time.perf_counter() - began


def measured_machine(engine: Engine, parts: Parts) -> Machine:
    """Peaks for the model's shapes; where its config does not tell them, for the square alone."""
    from tithe.engine.measure.machine import measure_machine, products_of

    products = []
    with suppress(ModelError):
        products = products_of(parts.source.config, engine.budget or 1)
    return measure_machine(engine.model.device, products)


def affordable(sample: Sample, usual: Engine, settings: BenchSettings) -> tuple[Sample, float]:
    """The sample, or as much of it as can be read in the time for one reading.

    Returns:
        It, and the seconds by which the very first reading takes longer than the next one of the same.
    """
    few = sample.part(FIRST / len(sample.items))
    first = few.read(again(usual))
    reading = few.read(again(usual))
    if not reading.tokens:
        raise DataError(
            f"of {len(few.items):,} records of `{sample.parts.settings.dataset}` no pass could be made",
            hint="`tithe plan` lists the reasons",
        )
    whole = reading.seconds * len(sample.items) / len(few.items)
    enough = sample if whole <= settings.seconds else sample.part(settings.seconds / whole)
    return enough, max(0.0, first.seconds - reading.seconds)


def again(usual: Engine, budget: int | None = None, workers: int | None = None, threads: int | None = None) -> Engine:
    """A new engine with the same model; with other workers the cores are shared out anew."""
    from tithe.engine.engine import Engine

    workers = workers or usual.workers
    threads = threads or (usual.threads if workers == usual.workers else None)
    return Engine(usual.model, budget or usual.budget, workers, threads=threads)


def try_all(sample: Sample, usual: Engine, settings: BenchSettings) -> list[Choice]:
    """Budgets first, then workers with the best of them; what the settings name is not varied."""
    assert usual.budget is not None and usual.workers is not None
    budgets = {usual.budget}
    if settings.batch_tokens is None and usual.model.road != "single":
        budgets |= set(BUDGETS.get(usual.model.device.type, ()))
    choices = [Choice(budget, usual.workers) for budget in sorted(budgets)]
    read_in_turns(sample, usual, choices, settings.repeats)
    best = max(choices, key=lambda one: one.rate)
    if settings.workers is None:
        more = [Choice(best.budget, n) for n in worker_counts(usual) if n != usual.workers]
        read_in_turns(sample, usual, more, settings.repeats)
        choices += more
    return choices


def worker_counts(usual: Engine) -> Sequence[int]:
    """One pass on all cores, or one on each."""
    from tithe.engine.host import cpu_cores

    if usual.model.device.type != "cpu" or not usual.model.side_by_side:
        return ()
    return sorted({1, cpu_cores()})


def read_in_turns(sample: Sample, usual: Engine, choices: Iterable[Choice], repeats: int) -> None:
    """In turns, so that what else goes on here slows down all of them."""
    choices = list(choices)
    for _ in range(repeats):
        for one in choices:
            one.readings.append(sample.read(again(usual, one.budget, one.workers)))


def find_limits(sample: Sample, usual: Engine, machine: Machine, repeats: int, loading: float) -> Limits:
    """Where the time of a pass goes, one at a time on one core."""
    small = sample.part(1 / machine.threads)
    readings = [small.read(again(usual, workers=1, threads=1), clock=True) for _ in range(repeats)]
    return Limits(
        readings,
        [sample.tokenise() for _ in range(repeats)],
        small.shape,
        machine.best(usual.model.dtype, 1).best,
        loading,
    )


def describe(parts: Parts, job: dict[str, Any], machine: Machine, usual: Engine) -> dict[str, Any]:
    """What was measured, and where."""
    return {
        "settings": job["settings"],
        "versions": versions(),
        "dataset": job["dataset"],
        "model": job["model"],
        "counts": job["counts"],
        "engine": engine_record(usual),
        "machine": {
            "device": device_name(machine),
            "cores": machine.cores,
            "matmul": [peak.as_dict() for peak in machine.peaks],
            "fp32": None if machine.fp32 is None else machine.fp32.as_dict(),
        },
        "encoders": parts.encoder_specs,
    }


def device_name(machine: Machine) -> str:
    import torch

    return torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else str(machine.device)


def notes(parts: Parts, settings: BenchSettings, job: dict[str, Any]) -> list[str]:
    """What is to be known about the numbers."""
    found = []
    records = job["counts"]["records"]
    if records < settings.limit:
        found.append(f"the data set has {records:,} records, fewer than the {settings.limit:,} of a sample")
    if parts.encoder_specs:
        found.append(f"vectors of prompts ({', '.join(parts.encoder_specs)}) are made before, and are not in the times")
    return found
